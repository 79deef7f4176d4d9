"use strict";
(() => {
  const table = document.getElementById("variables");
  const form = document.getElementById("filters");
  if (!table || !form) return;
  const { texts, variables } = JSON.parse(document.getElementById("details").textContent);
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, detail: null, details: variables[row.dataset.index] }));

  // A table that is laid out as cards would lose its roles.
  table.setAttribute("role", "table");
  for (const part of [table.tHead, body]) part.setAttribute("role", "rowgroup");
  for (const row of table.rows) {
    row.setAttribute("role", "row");
    for (const cell of row.cells) cell.setAttribute("role", cell.tagName === "TH" ? "columnheader" : "cell");
  }

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // Filters.
  for (const entry of rows) {
    const facts = entry.details.facts.filter(([name]) => name === "Path").map(([, lines]) => lines.join(" "));
    entry.text = [entry.row.dataset.name, entry.row.dataset.shape, ...facts].join(" ").toLowerCase();
  }
  const choices = [...form.querySelectorAll("select")];
  const search = document.getElementById("search");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keys = { outcome: "outcome", role: "role", rule: "number" };
    let count = 0;
    for (const { row, detail, text } of rows) {
      const fits = words.every((word) => text.includes(word)) &&
        choices.every((choice) => choice.value === "" || row.dataset[keys[choice.id]] === choice.value);
      row.hidden = !fits;
      if (detail) detail.hidden = !fits || !isOpen(row);
      count += fits;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length} rows`;
  };
  for (const event of ["input", "change"]) form.addEventListener(event, filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));

  // Sorting.
  const collator = new Intl.Collator("en", { numeric: true });
  const sort = (button) => {
    const head = button.closest("th");
    const descending = head.getAttribute("aria-sort") === "ascending" ||
      (button.dataset.key === "size" && head.getAttribute("aria-sort") === "none");
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = button.dataset.key;
    const number = (text) => (text === "" ? Infinity : Number(text));
    const compare = "numeric" in button.dataset
      ? (a, b) => number(a) - number(b) || 0
      : (a, b) => collator.compare(a, b);
    rows.sort((a, b) => (descending ? -1 : 1) * compare(a.row.dataset[key], b.row.dataset[key]));
    for (const { row, detail } of rows) body.append(row, ...(detail ? [detail] : []));
  };
  for (const button of table.querySelectorAll("button.sort")) button.addEventListener("click", () => sort(button));

  // Details.
  const isOpen = (row) => row.querySelector("button.open").getAttribute("aria-expanded") === "true";
  const longest = 24;
  const short = (box, text) => {
    if (text.length <= longest) return text;
    // What tells variables apart comes last in their names; the name of a node ends with what it is.
    if (box.matches(".weight, .variable, .learning-rate")) return "…" + text.slice(1 - longest);
    const leaf = text.slice(text.lastIndexOf("/") + 1);
    return leaf.length <= longest ? leaf : leaf.slice(0, longest - 1) + "…";
  };
  let groups = 0;

  const drawn = (update, name) => {
    const names = update.names.map((number) => texts[number]);
    const svg = document.getElementById(`drawing-${update.drawing}`).content.firstElementChild.cloneNode(true);
    const boxes = [...svg.querySelectorAll(".box")];
    const injected = boxes.filter((box) => box.classList.contains("injected")).length;
    svg.setAttribute("aria-label", `The update of ${name}: ${boxes.length} nodes, of which graphwd adds ${injected}`);
    boxes.forEach((box, number) => {
      box.querySelector("title").textContent = names[number];
      box.querySelector(".name").textContent = short(box, names[number]);
    });
    svg.style.minWidth = `${0.9 * svg.getAttribute("width")}px`;
    return { svg, boxes, names };
  };

  const showUpdate = (update, name) => {
    const { svg, boxes, names } = drawn(update, name);
    const place = make("div", { class: "scroll shows-after", tabindex: "0", role: "region", "aria-label": "Drawing of the update" }, svg);
    const group = `shows-${groups++}`;
    const choice = make("fieldset", { class: "switch" }, make("legend", { class: "hidden" }, "Show the update"));
    for (const when of ["Before", "After"]) {
      const radio = make("input", { type: "radio", name: group, value: when.toLowerCase() });
      radio.checked = when === "After";
      radio.addEventListener("change", () => { place.className = `scroll shows-${radio.value}`; });
      choice.append(make("label", {}, radio, when));
    }
    let nest = place;
    for (const [node, attribute, callee] of [...update.nest].reverse()) {
      nest = make("div", { class: "nest" }, make("p", {}, `${node} [${attribute}] runs ${callee}`), nest);
    }
    const list = make("ol");
    boxes.forEach((box, number) => {
      const added = box.classList.contains("injected") ? ", added by graphwd" : "";
      list.append(make("li", {}, `${box.querySelector(".op").textContent}${added}: `, make("code", {}, names[number])));
    });
    return make("div", { class: "update" },
      make("div", { class: "update-head" }, choice, make("span", { class: "key" }, "added by graphwd")),
      make("div", { class: "nest" }, make("p", {}, "the step"), nest),
      make("details", { class: "nodes" }, make("summary", {}, `The ${boxes.length} nodes as a list`), list));
  };

  const open = (entry) => {
    const facts = make("dl", { class: "facts" });
    for (const [name, lines] of entry.details.facts) {
      facts.append(make("dt", {}, name), make("dd", {}, lines.join("\n")));
    }
    const updates = (entry.details.updates || []).map((update) => showUpdate(update, entry.row.dataset.name));
    const cell = make("td", { colspan: entry.row.cells.length, role: "cell" }, facts, ...updates);
    entry.detail = make("tr", { class: "detail", role: "row", id: `detail-${entry.row.dataset.index}` }, cell);
    entry.row.after(entry.detail);
    entry.row.querySelector("button.open").setAttribute("aria-controls", entry.detail.id);
    for (const place of entry.detail.querySelectorAll(".scroll")) {
      // The decay comes first into view.
      const sides = [...place.querySelectorAll(".box.injected")].map((box) => box.getBoundingClientRect());
      const middle = (Math.min(...sides.map((side) => side.left)) + Math.max(...sides.map((side) => side.right))) / 2;
      const seen = place.getBoundingClientRect();
      place.scrollLeft = middle - seen.left - seen.width / 2;
    }
  };

  const toggle = (entry) => {
    const opened = !isOpen(entry.row);
    if (!entry.detail) open(entry);
    entry.detail.hidden = !opened;
    entry.row.querySelector("button.open").setAttribute("aria-expanded", String(opened));
  };
  for (const entry of rows) {
    entry.row.addEventListener("click", () => {
      if (!String(getSelection())) toggle(entry);
    });
  }
})();
