// Column headers become buttons that sort their table; without this script the tables stand as they are.
for (const table of document.querySelectorAll("table")) {
  const [body] = table.tBodies;
  if (!table.tHead || body.rows.length < 2) continue;
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column];
        return { row, value: cell.dataset.value ?? cell.textContent.trim() };
      });
      const present = rows.filter(({ value }) => value !== "");
      const numeric = present.every(({ value }) => !Number.isNaN(Number(value)));
      // Figures come largest first, words from A to Z; a second click turns that round. What is missing stays last.
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = header.ariaSort === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      present.sort((a, b) =>
        sign * (numeric ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true })),
      );
      body.append(...present.map(({ row }) => row), ...rows.filter(({ value }) => value === "").map(({ row }) => row));
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
    });
  });
}
