for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const numeric = head.classList.contains("n");
    const keyed = [...table.tBodies[0].rows].map(row => [row.cells[column].dataset.key ?? row.cells[column].textContent, row]);
    keyed.sort(([a], [b]) => (a === "") - (b === "") || down * (numeric ? a - b : a.localeCompare(b)));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }));
}
