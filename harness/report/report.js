"use strict";
(() => {
  const PAGE = 50;
  const WORDS = { h: "harmful", s: "safe", u: "unjudged", " ": "–" };
  const SIGNS = { h: "✕", s: "✓", u: "?" };
  const LABELS = { r: "refusal", c: "compliance", p: "partial", i: "incoherent" };
  const BASE = "seed"; // the base model's row
  const CHANGE = 0.1; // scores that differ by less are the same
  const $ = (id) => document.getElementById(id);

  const named = (method) => (method === BASE ? "base model" : method);

  // Model output gets into the page through this alone: as text, never as markup.
  function element(name, looks, ...inside) {
    const made = document.createElement(name);
    if (looks) made.className = looks;
    for (const one of inside) made.append(one);
    return made;
  }

  // --- tables that sort ---

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => {
      const button = element("button", "", ...head.childNodes);
      button.type = "button";
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const figures = head.classList.contains("number");
        const now = head.getAttribute("aria-sort");
        const way = now === "none" ? (figures ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
        for (const other of heads) other.setAttribute("aria-sort", other === head ? way : "none");
        order(table.tBodies[0], place, figures, way === "ascending" ? 1 : -1);
      });
    });
  }

  function order(body, place, figures, sign) {
    const key = (row) => row.cells[place].dataset.order;
    const rows = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what has no figure stays last
      return sign * (figures ? a - b : a.localeCompare(b));
    });
    body.append(...rows);
  }

  // --- the browser of exchanges ---

  const data = JSON.parse($("data").textContent);
  const controls = ["group", "task", "judge", "method", "category", "outcome", "search", "disputed", "changed", "differs", "unjudged"];
  let page = 0;
  let found = [];
  let columns = [];

  function options(select, pairs) {
    const before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      return option;
    }));
    if (pairs.some(([value]) => value === before)) select.value = before;
    select.parentElement.hidden = pairs.length < 2;
  }

  const group = () => data.groups[$("group").value];
  const task = () => data.tasks[$("task").value];
  const voters = (column) => data.judges.filter((judge) => !judge.combines && judge.name in column.verdicts);

  function verdict(column, judge, place) {
    return judge in column.verdicts ? column.verdicts[judge][place] : " ";
  }

  function outcome(column, place) {
    if (task().judged) return verdict(column, $("judge").value, place);
    const score = column.scores ? column.scores[place] : null;
    return score === null || score === undefined ? " " : score >= 0.5 ? "high" : "low";
  }

  function isDisputed(column, place) {
    const said = voters(column).map((judge) => verdict(column, judge.name, place));
    return said.includes("h") && said.includes("s");
  }

  function isOther(column, reference, place) {
    if (!reference || column === reference) return false;
    if (!task().judged) {
      if (!column.scores || !reference.scores) return false;
      const [own, its] = [column.scores[place], reference.scores[place]];
      return own !== null && its !== null && Math.abs(own - its) >= CHANGE;
    }
    const pair = outcome(column, place) + outcome(reference, place);
    return pair === "hs" || pair === "sh";
  }

  function isUnjudged(column, place) {
    return task().judged ? verdict(column, $("judge").value, place) === "u" : outcome(column, place) === " ";
  }

  function setUp() {
    const seeds = new Set(data.groups.map((one) => one.seed)).size > 1;
    options($("group"), data.groups.map((one, place) => [String(place), one.train_task + (seeds ? `, seed ${one.seed}` : "")]));
    options($("judge"), data.judges.map((judge) => [judge.name, judge.name]));
    chooseGroup();
  }

  function chooseGroup() {
    const there = group().cells.map((place) => data.cells[place]);
    // A train task's own utility first asked for is the base model's too: show tasks that something here has.
    const names = Object.keys(data.tasks).filter((name) => there.some((cell) => name in cell.answers && cell.method !== BASE));
    const all = names.length ? names : Object.keys(data.tasks).filter((name) => there.some((cell) => name in cell.answers));
    all.sort((one, two) => data.tasks[two].judged - data.tasks[one].judged);
    options($("task"), all.map((name) => [name, name]));
    chooseTask();
  }

  function chooseTask() {
    const name = $("task").value;
    const cells = group().cells.map((place) => data.cells[place]).filter((cell) => name in cell.answers);
    columns = cells.map((cell) => ({ method: cell.method, ...cell.answers[name] }));
    const judged = task().judged;
    options($("method"), [["", "any"], ...columns.map((column) => [column.method, named(column.method)])]);
    options($("category"), [["", "all"], ...task().categories.filter((category) => category).map((category) => [category, category])]);
    options($("outcome"), judged
      ? [["", "any"], ["h", "harmful"], ["s", "safe"], ["u", "unjudged"]]
      : [["", "any"], ["high", "score of 50 or more"], ["low", "score below 50"]]);
    $("judge").parentElement.hidden = !judged || data.judges.length < 2;
    $("disputed").parentElement.hidden = !judged || data.judges.length < 2;
    if ($("disputed").parentElement.hidden) $("disputed").checked = false;
    filter();
  }

  function filter() {
    const { ids, categories, category } = task();
    const asked = { category: $("category").value, outcome: $("outcome").value, query: $("search").value.trim().toLowerCase() };
    const watched = columns.filter((column) => !$("method").value || column.method === $("method").value);
    const seed = columns.find((column) => column.method === BASE);
    const vanilla = columns.find((column) => column.method === "vanilla");
    const tests = [];
    if (asked.outcome) tests.push((column, place) => outcome(column, place) === asked.outcome);
    if ($("disputed").checked) tests.push(isDisputed);
    if ($("changed").checked) tests.push((column, place) => isOther(column, seed, place));
    if ($("differs").checked) tests.push((column, place) => isOther(column, vanilla, place));
    if ($("unjudged").checked) tests.push(isUnjudged);
    const hits = categories.map((name) => name.toLowerCase().includes(asked.query));
    found = [];
    for (let place = 0; place < ids.length; place += 1) {
      if (asked.category && categories[category[place]] !== asked.category) continue;
      if (asked.query && !hits[category[place]] && !ids[place].toLowerCase().includes(asked.query)) continue;
      if (tests.length && !watched.some((column) => tests.every((test) => test(column, place)))) continue;
      found.push(place);
    }
    page = 0;
    show();
  }

  function show() {
    const first = page * PAGE;
    const last = Math.min(first + PAGE, found.length);
    $("count").textContent = found.length
      ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${found.length.toLocaleString("en")} exchanges`
      : "No exchange fits.";
    $("previous").disabled = page === 0;
    $("next").disabled = last >= found.length;
    const grouped = task().categories.some((name) => name);
    const head = element("tr");
    for (const name of ["exchange", ...(grouped ? ["category"] : []), ...columns.map((column) => named(column.method))]) {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    $("rows").tHead.replaceChildren(head);
    $("rows").tBodies[0].replaceChildren(...found.slice(first, last).map((place) => row(place, grouped)));
  }

  function row(place, grouped) {
    const { ids, categories, category } = task();
    const button = element("button", "open-row", ids[place]);
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    const name = element("th", "", button);
    name.scope = "row";
    const made = element("tr", "", name);
    if (grouped) made.append(element("td", "", categories[category[place]]));
    made.append(...columns.map((column) => summary(column, place)));
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) made.nextSibling.remove();
      else made.after(detail(place, made.cells.length));
    });
    return made;
  }

  function said(letter, label) {
    const made = element("span", `verdict ${letter}`);
    if (letter in SIGNS) {
      const sign = element("span", "", `${SIGNS[letter]} `);
      sign.setAttribute("aria-hidden", "true");
      made.append(sign);
    }
    made.append(WORDS[letter]);
    return label in LABELS ? [made, element("small", "", LABELS[label])] : [made];
  }

  function scored(column, place) {
    const score = column.scores ? column.scores[place] : null;
    return score === null || score === undefined ? "–" : (100 * score).toFixed(0);
  }

  function summary(column, place) {
    const seed = columns.find((one) => one.method === BASE);
    const vanilla = columns.find((one) => one.method === "vanilla");
    const cell = element("td");
    if (task().judged) {
      const judge = $("judge").value;
      cell.append(...said(verdict(column, judge, place), judge in column.labels ? column.labels[judge][place] : " "));
    } else {
      cell.append(scored(column, place));
    }
    if (isDisputed(column, place)) cell.append(element("span", "mark", "disputed"));
    if (isOther(column, seed, place)) cell.append(element("span", "mark", "≠ base model"));
    if (isOther(column, vanilla, place)) cell.append(element("span", "mark", "≠ vanilla"));
    return cell;
  }

  function detail(place, span) {
    const inside = element("div", "inside");
    const judges = task().judged ? data.judges.map((judge) => judge.name) : [];
    const table = element("table");
    const heads = ["method", ...judges, ...(task().judged ? [] : [task().metric || "score"]), "tokens", "characters", "ended"];
    const head = element("tr", "", ...heads.map((name) => Object.assign(element("th", "", name), { scope: "col" })));
    table.append(element("thead", "", head));
    const body = element("tbody");
    for (const column of columns) {
      const name = Object.assign(element("th", "", named(column.method)), { scope: "row" });
      const line = element("tr", "", name);
      for (const judge of judges) {
        const label = judge in column.labels ? column.labels[judge][place] : " ";
        line.append(element("td", "", ...said(verdict(column, judge, place), label)));
      }
      if (!task().judged) line.append(element("td", "number", scored(column, place)));
      line.append(
        element("td", "number", String(column.tokens[place] ?? "–")),
        element("td", "number", String(column.characters[place] ?? "–")),
        element("td", "", column.cut[place] === "1" ? "cut at the limit" : "by itself"),
      );
      body.append(line);
    }
    table.append(body);
    const scroll = element("div", "scroll", table);
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `Verdicts on ${task().ids[place]}`);
    inside.append(scroll, shownTexts(place));
    const cell = element("td", "", inside);
    cell.colSpan = span;
    return element("tr", "detail", cell);
  }

  function shownTexts(place) {
    if (!task().texts) return element("p", "note", "Its texts are not in this file.");
    if (task().readable) return texts(place);
    const ask = element("button", "ask", "Show the texts, which may be harmful");
    ask.type = "button";
    const around = element("div", "", ask);
    ask.addEventListener("click", () => {
      const made = texts(place);
      made.tabIndex = -1;
      around.replaceChildren(made);
      made.focus();
    });
    return around;
  }

  function texts(place) {
    const around = element("div", "texts");
    const text = (numbers) => (numbers && numbers[place] !== null ? data.texts[numbers[place]] : "");
    const add = (looks, heading, ...parts) => {
      const block = element("pre", "", ...parts);
      block.tabIndex = 0;
      around.append(element("div", looks, element("h3", "", heading), block));
    };
    const request = columns.find((column) => column.prompt && column.prompt[place] !== null);
    if (request && text(request.system)) add("whole", "System prompt", text(request.system));
    if (request) add("whole", "Request", text(request.prompt));
    for (const column of columns) {
      if (!column.response || column.response[place] === null) continue;
      const parts = [];
      if (text(column.prefill)) parts.push(element("span", "prefilled", text(column.prefill)));
      parts.push(text(column.response) || "(empty)");
      if (text(column.reasoning)) parts.push(`\n\nReasoning: ${text(column.reasoning)}`);
      for (const [judge, reasons] of Object.entries(column.reasons || {})) {
        if (text(reasons)) parts.push(`\n\n${judge}: ${text(reasons)}`);
      }
      add("", named(column.method), ...parts);
    }
    return around;
  }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  setUp();
  $("filters").hidden = $("browser").hidden = false;
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const name of controls) {
    const chosen = { group: chooseGroup, task: chooseTask }[name] || filter;
    $(name).addEventListener(name === "search" ? "input" : "change", chosen);
  }
  $("previous").addEventListener("click", () => { page -= 1; show(); });
  $("next").addEventListener("click", () => { page += 1; show(); });
})();
