"""The report: the contents of run folders as one self-contained HTML page.

`runs` and `analyses` read folders, `figures` encodes figures for the page, `tables` and `curves` choose what is shown,
and `page` fills the template.
"""
