"""From an analysis to what people see: a page (`html`), and rows for a terminal or Markdown (`text`)."""
