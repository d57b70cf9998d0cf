"""The sites of Teacher Intervention: where in a layer the teacher's tensor replaces the student's."""

from enum import StrEnum


class Site(StrEnum):
    """Where the teacher's tensor replaces the student's (Teacher Intervention, EACL 2023, section 4).

    `MAP` is the paper's TI-M, `CONTEXT` its TI-C and `PROJECTION` its TI-O.
    """

    MAP = "map"
    CONTEXT = "context"
    PROJECTION = "projection"

    @property
    def field(self) -> str:
        """The `LayerTrace` field of the teacher that this site hands to the student.

        >>> Site.MAP.field
        'attention_probs'
        """
        return _SITE_FIELDS[self]


_SITE_FIELDS = {Site.MAP: "attention_probs", Site.CONTEXT: "context", Site.PROJECTION: "attention_projection"}
