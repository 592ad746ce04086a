"use strict";
// Sorts a table by the column whose heading was pressed; pressed again, the other way round.
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  // Numbers before texts, so that "n/a" comes last whichever way numbers are sorted.
  const compare = (a, b, sign) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "number") return sign * (a - b);
    return sign * a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, column) => {
    const headings = [...table.tHead.rows[0].cells];
    const down = headings[column].ariaSort === "ascending";
    const sign = down ? -1 : 1;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(value(a, column), value(b, column), sign));
    table.tBodies[0].append(...rows);
    for (const [index, heading] of headings.entries()) {
      heading.ariaSort = index !== column ? "none" : down ? "descending" : "ascending";
    }
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
      heading.firstElementChild.addEventListener("click", () => sort(table, column));
    }
  }
  // What is folded is printed, too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const it of opened) it.open = true;
  });
  addEventListener("afterprint", () => {
    for (const it of opened) it.open = false;
  });
})();
