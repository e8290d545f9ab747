// One score against another: points with standard errors, fronts, and the way through the strengths of a LoRA.
{
  const EDGE = { left: 70, right: 24, top: 20, bottom: 56 }, ROOM = 110; // pixels of the longest label
  let WIDTH, HEIGHT; // pixels, so that texts have their size on every screen
  const COLOURS = 5; // --kind-0 and the following
  const groups = [...new Set(DATA.contestants.map((each) => each.group))];
  const colourOf = (group) => `var(--kind-${groups.indexOf(group) % COLOURS})`;

  // About five round numbers from low to high, or three where the page is narrow.
  function ticks(low, high) {
    const rough = (high - low) / (WIDTH < 500 ? 3 : 5) || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
    return found.map((value) => Number(value.toPrecision(12)));
  }

  function scale(values, errors, from, to) {
    let low = Math.min(...values.map((value, i) => value - errors[i]));
    let high = Math.max(...values.map((value, i) => value + errors[i]));
    const margin = (high - low) * 0.08 || Math.abs(high) * 0.01 || 1;
    low -= margin;
    high += margin;
    const place = (value) => from + ((value - low) / (high - low)) * (to - from);
    return { low, high, place };
  }

  // Circles, squares, triangles and so on, so that groups differ in more than their colour.
  function marker(shape, x, y, colour) {
    const look = { fill: colour, stroke: "var(--card)", "stroke-width": 1.5 };
    if (shape % 3 === 1) return element("rect", { x: x - 6, y: y - 6, width: 12, height: 12, ...look });
    if (shape % 3 === 2) return element("polygon", { points: `${x},${y - 8} ${x + 7},${y + 6} ${x - 7},${y + 6}`, ...look });
    return element("circle", { cx: x, cy: y, r: 6.5, ...look });
  }

  function labelOf(contestant) {
    return contestant.group in DATA.lines ? `${contestant.group} ${contestant.strength}` : contestant.name;
  }

  function draw() {
    const across = byId("across").value, up = byId("up").value;
    const points = DATA.contestants.filter((each) => {
      const values = DATA.values[each.name] || {};
      return values[across] != null && values[up] != null;
    });
    if (!points.length) return byId("plot").replaceChildren("No contestant has both scores.");
    WIDTH = Math.max(280, Math.min(860, byId("plot").clientWidth - 40));
    HEIGHT = Math.max(300, Math.round(WIDTH * 0.58));
    const value = (name, score) => DATA.values[name][score];
    const error = (name, score) => DATA.errors[name][score] || 0;
    const side = (score, from, to) =>
      scale(points.map((each) => value(each.name, score)), points.map((each) => error(each.name, score)), from, to);
    const x = side(across, EDGE.left, WIDTH - EDGE.right), y = side(up, HEIGHT - EDGE.bottom, EDGE.top);
    const at = (name) => [x.place(value(name, across)), y.place(value(name, up))];
    const said = points.map((each) =>
      `${each.name} ${readableNumber(value(each.name, across))}, ${readableNumber(value(each.name, up))}`);
    const label = `${scoreOf[up].text} against ${scoreOf[across].text}: ${said.join("; ")}`;
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    drawAxes(svg, x, y, scoreOf[across], scoreOf[up]);
    const known = (names) => names.filter((name) => points.some((each) => each.name === name));
    for (const [group, names] of Object.entries(DATA.lines)) {
      const way = known([DATA.contestants[0].name, ...names]).map((name) => at(name).join());
      svg.append(element("polyline", { points: way.join(" "), fill: "none", stroke: colourOf(group), "stroke-dasharray": "2 5", "stroke-width": 1.5 }));
    }
    for (const [group, names] of Object.entries(DATA.fronts[`${across}/${up}`] || {})) {
      const colour = group ? colourOf(group) : "var(--soft)";
      svg.append(element("polyline", { class: "front", points: known(names).map((name) => at(name).join()).join(" "), fill: "none", stroke: colour, "stroke-width": 2.5 }));
    }
    for (const each of points) drawPoint(svg, each, at(each.name), x, y, across, up, error);
    byId("plot").replaceChildren(svg);
    spread(svg);
  }

  function drawAxes(svg, x, y, across, up) {
    const bottom = HEIGHT - EDGE.bottom;
    for (const tick of ticks(x.low, x.high)) {
      svg.append(element("line", { class: "axis", x1: x.place(tick), x2: x.place(tick), y1: EDGE.top, y2: bottom }));
      svg.append(element("text", { x: x.place(tick), y: bottom + 20, "text-anchor": "middle" }, String(tick)));
    }
    for (const tick of ticks(y.low, y.high)) {
      svg.append(element("line", { class: "axis", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y.place(tick), y2: y.place(tick) }));
      svg.append(element("text", { x: EDGE.left - 8, y: y.place(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    const middle = (EDGE.left + WIDTH - EDGE.right) / 2, height = (EDGE.top + bottom) / 2;
    const named = (score) => score.text + (score.sign ? " (sign of hacking)" : score.lower ? " (lower is better)" : "");
    svg.append(element("text", { x: middle, y: HEIGHT - 12, "text-anchor": "middle" }, named(across)));
    svg.append(element("text", { x: 18, y: height, "text-anchor": "middle", transform: `rotate(-90 18 ${height})` }, named(up)));
  }

  function drawPoint(svg, each, [px, py], x, y, across, up, error) {
    const colour = colourOf(each.group);
    const wide = Math.abs(x.place(x.low + error(each.name, across)) - x.place(x.low));
    const high = Math.abs(y.place(y.low + error(each.name, up)) - y.place(y.low));
    const left = px > WIDTH - ROOM;
    const thin = { stroke: colour, "stroke-width": 1, opacity: 0.6 };
    svg.append(element("line", { x1: px - wide, x2: px + wide, y1: py, y2: py, ...thin }));
    svg.append(element("line", { x1: px, x2: px, y1: py - high, y2: py + high, ...thin }));
    if (each.knee) svg.append(element("circle", { class: "knee-ring", cx: px, cy: py, r: 12, fill: "none", stroke: colour, "stroke-width": 2 }));
    const drawn = marker(groups.indexOf(each.group), px, py, colour);
    drawn.append(element("title", {}, each.name));
    svg.append(drawn, element("text", { class: "point-label", "text-anchor": left ? "end" : "start", x: px + (left ? -14 : 14), y: py - 8 }, labelOf(each)));
  }

  // Moves labels that lie over each other down or up, until they do not; needs an svg that is laid out.
  function spread(svg) {
    const labels = [...svg.querySelectorAll(".point-label")].sort((one, other) => one.getAttribute("y") - other.getAttribute("y"));
    const placed = [];
    for (const label of labels) {
      for (let turn = 0; turn < 12; turn++) {
        const box = label.getBBox();
        const hit = placed.find((other) => box.x < other.x + other.width && other.x < box.x + box.width &&
          box.y < other.y + other.height && other.y < box.y + box.height);
        if (!hit) break;
        label.setAttribute("y", Number(label.getAttribute("y")) + hit.y + hit.height - box.y + 1);
      }
      placed.push(label.getBBox());
    }
  }

  const options = DATA.scores.map((score) => [score.name, score.text + (score.sign ? " (sign)" : "")]);
  const names = DATA.scores.map((score) => score.name);
  // First of all two rewards that differ between contestants, if there are such.
  const differs = (name) => new Set(Object.values(DATA.values).map((values) => values[name]).filter((value) => value != null)).size > 1;
  const chosen = [...names.filter((name) => !scoreOf[name].sign && differs(name)), ...names];
  fill(byId("across"), options, chosen[0]);
  fill(byId("up"), options, chosen.find((name) => name !== chosen[0]) || chosen[0]);
  for (const id of ["across", "up"]) byId(id).addEventListener("change", draw);
  if (names.length) {
    draw();
    addEventListener("resize", draw);
  }
}
