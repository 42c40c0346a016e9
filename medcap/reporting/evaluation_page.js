const rows = JSON.parse(document.getElementById("table").textContent).map((row) => [row, row.join(" ").toLowerCase()]);
const query = document.getElementById("query"), order = document.getElementById("order"), limit = 200;
let direction = 0;
function show() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter(([, text]) => words.every((word) => text.includes(word))).map(([row]) => row);
  if (direction) found.sort((one, two) => direction * (one[3] - two[3]));
  document.querySelector("#all tbody").replaceChildren(...found.slice(0, limit).map((row) => {
    const line = document.createElement("tr");
    for (const cell of row) line.insertCell().textContent = cell;
    return line;
  }));
  const shown = found.length > limit ? `, the first ${limit} shown` : "";
  document.getElementById("count").textContent = `${found.length} of ${rows.length} captions${shown}`;
}
order.addEventListener("click", () => {
  direction = direction === 1 ? -1 : 1;
  order.textContent = direction === 1 ? "best first" : "worst first";
  show();
});
query.addEventListener("input", show);
show();
