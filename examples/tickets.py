"""Writes a made-up file of support tickets, as messy as such files are: `python tickets.py tickets.csv`.

Seven classes, the rarest one with 2 % of the rows. Windows-1252 with semicolons and an index column; tickets that were
entered twice, blank rows, missing labels, wrong labels, typing errors, and mails that quote half of another ticket.
"""

import csv
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SHARES = {"delivery": 34, "invoice": 24, "return": 16, "account": 11, "product": 8, "complaint": 5, "privacy": 2}
ITEMS = ("kettle", "desk lamp", "rucksack", "pair of boots", "headset", "garden chair", "coffee grinder", "phone case")
NAMES = ("Müller", "Sørensen", "O'Brien", "García", "Smith", "Nguyen", "Dvorak", "Lefèvre")
OPENINGS = ("Hello,", "Hi there!", "Dear team,", "Good morning,", "To whom it may concern:", "", "", "URGENT!!", "Hi,")
CLOSINGS = (
    "Thanks, {name}",
    "Kind regards\n{name}",
    "Please call me back.",
    "",
    "",
    "I look forward to your answer.",
    "BR {name}",
)
# What anybody writes, whatever it is about.
COMMON = (
    "I ordered a {item} on the {day}th, order {order}.",
    "My order number is {order}.",
    "I have been a customer for {day} years.",
    "This is the second time that I write.",
    "I found no answer on your website.",
    "The {item} itself is fine.",
    "I paid by card and got the confirmation at once.",
    "I already talked to your colleague on the phone.",
)
TEXTS = {
    "delivery": (
        "It was to arrive {ago} days ago and there is still nothing here.",
        "The tracking has shown the same depot since the {day}th.",
        "Your driver left the parcel with a neighbour I do not know.",
        "Where is my {item}?",
        "Can it be sent to my office instead?",
        "Only one of the two boxes came.",
        "How long does shipping to Portugal take?",
    ),
    "invoice": (
        "The amount on my statement is {amount} euros higher than in the shop.",
        "I was charged twice for the {item}.",
        "Please send the bill again with our VAT number on it.",
        "The voucher was not taken off the total.",
        "Why is there a fee of {amount} euros?",
        "Accounting needs it in the name of the company.",
        "The reminder says that I have not paid, but I have.",
    ),
    "return": (
        "The {item} does not fit and I would like to send it back.",
        "How do I print the label for the way back?",
        "I sent it back {ago} days ago; when will I see the money?",
        "Can I exchange the {item} for a larger one?",
        "It came with a scratch, so I do not want to keep it.",
        "Is the month counted from the order or from the day it came?",
    ),
    "account": (
        "The link for a new password never comes.",
        "I cannot sign in since the update.",
        "Please change my address to 12 Station Road.",
        "My email has changed and I still get mail at the old one.",
        "It says that my user is locked.",
        "How do I add a second person to our company login?",
    ),
    "product": (
        "Is the {item} also made in green?",
        "Does the {item} work with 110 volts?",
        "Which batteries does the {item} need?",
        "Is there a manual for the {item} in French?",
        "How heavy is the {item} without its box?",
        "Will the {item} be in stock again before Christmas?",
    ),
    "complaint": (
        "Nobody has answered for {ago} days, that is no way to treat people.",
        "Your colleague on the phone was rude and hung up.",
        "I will not order here again.",
        "I want to talk to somebody who is responsible.",
        "This is the worst service I have seen in {day} years.",
    ),
    "privacy": (
        "Please delete everything that you have stored about me.",
        "Which data do you keep, and who gets it?",
        "I object to the use of my address for advertising.",
        "I ask for a copy of my data under article 15.",
    ),
}


def tickets(count: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Day, text and label of made-up tickets; one in fifty has the label of another class."""
    choose = random.Random(seed)
    for number in range(count):
        label = choose.choices(list(SHARES), list(SHARES.values()))[0]
        sentences = choose.sample(TEXTS[label], choose.choice((1, 1, 2)))
        sentences += choose.sample(COMMON, choose.choice((0, 1, 1, 2)))
        if choose.random() < 0.15:  # in passing, last
            sentences.append("By the way: " + choose.choice(TEXTS[choose.choice(list(TEXTS))]))
        else:
            choose.shuffle(sentences)
        text = " ".join((choose.choice(OPENINGS), *sentences, choose.choice(CLOSINGS))).strip()
        if choose.random() < 0.02:
            text += "\n\n> " + " ".join(choose.choice(COMMON) for _ in range(60))
        text = filled(text, choose)
        shown = choose.choice(list(SHARES)) if choose.random() < 0.02 else label
        yield f"2026-{1 + number * 11 // count:02}-{choose.randint(1, 28):02}", text, shown


def filled(text: str, choose: random.Random) -> str:
    """A text with its blanks filled in, and now and then two letters that changed places."""
    values = {"item": choose.choice(ITEMS), "name": choose.choice(NAMES), "day": choose.randint(3, 27)}
    values |= {"ago": choose.randint(2, 20), "order": choose.randint(10**6, 10**7), "amount": choose.randint(2, 90)}
    letters = list(text.format(**values))
    for place in range(1, len(letters)):
        if choose.random() < 0.004 and (letters[place - 1] + letters[place]).isalpha():
            letters[place - 1 : place + 1] = letters[place], letters[place - 1]
    return "".join(letters)


def write(path: str | Path, count: int = 3000, seed: int = 0) -> None:
    """Write so many tickets to a CSV file, some of them twice, with rows between them that cannot be used."""
    choose, rows = random.Random(seed), list(tickets(count, seed))
    with Path(path).open("w", encoding="windows-1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(("", "date", "message", "category"))
        for number, (day, text, label) in enumerate(rows):
            writer.writerow((number, day, text, "" if choose.random() < 0.001 else label))
            if choose.random() < 0.03:
                writer.writerow((number, day, text.upper(), label))
            if choose.random() < 0.002:
                file.write(";;;\r\n")


def main(arguments: Sequence[str]) -> None:
    """Write the file that is named, with as many rows as are asked for."""
    write(arguments[0], *map(int, arguments[1:2]))


if __name__ == "__main__":
    main(sys.argv[1:])
