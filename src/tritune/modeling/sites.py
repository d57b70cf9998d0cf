"""The sites of Teacher Intervention: where in a layer the teacher's tensor replaces the student's."""

from enum import StrEnum


class Site(StrEnum):
    """Where the teacher's tensor replaces the student's (Teacher Intervention, EACL 2023, section 4).

    `MAP` is the paper's TI-M, `CONTEXT` its TI-C and `PROJECTION` its TI-O. `BLOCK` is the hidden state that a block
    takes, the annealed teacher forcing of MREM (NeurIPS 2022, arXiv 2109.15082): no gradient leaves a block through it.
    """

    MAP = "map"
    CONTEXT = "context"
    PROJECTION = "projection"
    BLOCK = "block"

    @property
    def field(self) -> str:
        """The field of the teacher's trace that this site hands to the student.

        >>> Site.MAP.field, Site.BLOCK.field
        ('attention_probs', 'hidden_states')
        """
        return _SITE_FIELDS[self]


# The published ones, inside the attention.
ATTENTION_SITES = (Site.MAP, Site.CONTEXT, Site.PROJECTION)
_SITE_FIELDS = {
    Site.MAP: "attention_probs",
    Site.CONTEXT: "context",
    Site.PROJECTION: "attention_projection",
    Site.BLOCK: "hidden_states",
}
