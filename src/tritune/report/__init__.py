"""The report: what run folders hold, as one HTML page that needs nothing else.

`runs` and `analyses` read folders, `figures` makes pictures that a page can hold, `tables` and `curves` choose what is
shown, and `page` puts all of it into the template.
"""
