"""From an analysis to what people see.

Reading order: `grid` (a table as data), `designs` and `findings` (the tables), `figures` with `forest`, `curves` and
`scatter` (the plots), `html` and `markdown` (the pages), `write` (into a sweep's folder).
"""
