// Tables of class "sortable": a click on a header sorts by the column, a second one turns it around; a field above filters rows.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    const number = Number(text);
    return text === "" || text === "-" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const turned = header.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", turned ? "descending" : "ascending");
      const sign = turned ? -1 : 1;
      rows.sort((left, right) => {
        const a = value(left, column), b = value(right, column);
        if (a === null || b === null) return (a === null) - (b === null); // undefined values stay last
        return a === b ? 0 : (typeof a === typeof b ? a < b : typeof a === "number") ? -sign : sign;
      });
      body.append(...rows);
    });
  });
  if (rows.length < 8) continue;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "Filter " + rows.length.toLocaleString("en") + " rows";
  field.setAttribute("aria-label", "Filter the rows of: " + (table.closest("[aria-label]")?.getAttribute("aria-label") ?? "table"));
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  (table.closest(".scroll") ?? table).before(field);
}
