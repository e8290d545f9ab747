// Votes on pairs of images without their names; they are kept in the browser and can be saved for training.
{
  const KEY = `spo_jax votes ${DATA.key}`;
  const named = new Set(DATA.items.flatMap((item) => Object.keys(item.shown)));
  const voters = DATA.contestants.map((each) => each.name).filter((name) => named.has(name));
  let kept = { votes: [], shown: [] }; // pairs in ``shown`` are no longer blind
  let pair = null; // names in the order of the contestants
  let queue = []; // pairs of images that are not voted on yet

  const read = () => {
    try { kept = { ...kept, ...JSON.parse(localStorage.getItem(KEY) || "{}") }; } catch { /* kept in memory only */ }
  };
  const keep = () => {
    try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch { say("This browser does not keep votes: save them before you close the page."); }
  };
  const say = (text) => (byId("vote-message").textContent = text);
  const pairKey = (names) => JSON.stringify(names);
  const votesOf = (names) => kept.votes.filter((vote) => vote.pair === pairKey(names));
  const isBlind = () => !kept.shown.includes(pairKey(pair));

  // A number in [0, 1) that follows from a text, so that a reload changes neither order nor sides (FNV-1a, mixed).
  function chance(text) {
    let hash = 0x811c9dc5;
    for (const character of text) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
    hash = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b);
    hash = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b);
    return ((hash ^ (hash >>> 16)) >>> 0) / 2 ** 32;
  }

  function waiting() {
    const seen = new Set(votesOf(pair).map((vote) => `${vote.prompt} ${vote.image}`));
    const chanceOf = (what, item) => chance(`${what} ${DATA.key} ${pairKey(pair)} ${item.prompt} ${item.image}`);
    return DATA.items
      .filter((item) => pair.every((name) => name in item.shown) && !seen.has(`${item.prompt} ${item.image}`))
      .sort((one, other) => chanceOf("order", one) - chanceOf("order", other))
      .map((item) => ({ item, sides: chanceOf("side", item) < 0.5 ? pair : [...pair].reverse() }));
  }

  function chosen() {
    const names = [byId("vote-first").value, byId("vote-second").value];
    return names[0] === names[1] ? null : voters.filter((name) => names.includes(name));
  }

  // Says what is kept of the chosen pair, which can be continued, saved or forgotten.
  function offer() {
    pair = chosen();
    const counted = (count) => `${count} ${count === 1 ? "vote" : "votes"}`;
    const count = pair ? votesOf(pair).length : 0, others = kept.votes.length - count;
    byId("tally").hidden = true;
    showButtons();
    say([count && `${counted(count)} on this pair`, others && `${counted(others)} on other pairs`].filter(Boolean).join(" and ") +
      (kept.votes.length ? ` ${kept.votes.length === 1 ? "is" : "are"} kept in this browser.` : ""));
  }

  function showButtons() {
    const begun = pair && votesOf(pair).length;
    byId("start").textContent = !begun ? "Start" : waiting().length || isBlind() ? "Continue" : "Show the result";
    byId("exports").hidden = byId("export-hint").hidden = !kept.votes.length;
    byId("forget").hidden = !begun;
  }

  function start() {
    pair = chosen();
    if (!pair) return say("Choose two different contestants.");
    if (!isBlind() && !waiting().length) return finish();
    byId("images").hidden = true; // it names who made what
    byId("setup").hidden = true;
    byId("tally").hidden = true;
    byId("exports").hidden = byId("export-hint").hidden = true;
    byId("voting").hidden = false;
    advance();
    byId("vote").scrollIntoView({ block: "start" });
  }

  // Shows the next pair of images; ``first`` is a vote that was taken back, whose pair comes first.
  function advance(first) {
    queue = waiting();
    const count = votesOf(pair).length;
    byId("undo").disabled = !count;
    document.querySelectorAll("#voting [data-vote], #vote-prompt").forEach((part) => (part.hidden = !queue.length));
    if (!queue.length) return say(`All ${count} are voted on. End to see the names, or take the last vote back with U.`);
    const again = queue.findIndex(({ item }) => first && item.prompt === first.prompt && item.image === first.image);
    if (again > 0) queue.unshift(...queue.splice(again, 1));
    const { item, sides } = queue[0];
    byId("vote-prompt").textContent = item.text;
    for (const [side, id, alt] of [[0, "vote-left", "left image"], [1, "vote-right", "right image"]]) {
      byId(id).src = item.shown[sides[side]].source;
      byId(id).alt = `${item.text}, ${alt}`;
    }
    const seen = isBlind() ? "" : " The names of this pair have been shown, so further votes do not count as blind.";
    say(`${count} voted, ${queue.length} to go.${seen}`);
  }

  function vote(label) {
    if (!queue.length) return;
    const { item, sides } = queue[0];
    const files = sides.map((name) => item.shown[name].file);
    kept.votes.push({ pair: pairKey(pair), prompt: item.prompt, image: item.image, text: item.text, sides, files, label, blind: isBlind(), time: new Date().toISOString() });
    keep();
    advance();
  }

  function undo() {
    const last = votesOf(pair).at(-1);
    if (!last) return;
    kept.votes.splice(kept.votes.lastIndexOf(last), 1);
    keep();
    advance(last);
  }

  function finish() {
    if (isBlind()) kept.shown.push(pairKey(pair));
    keep();
    byId("images").hidden = false;
    byId("setup").hidden = false;
    byId("voting").hidden = true;
    showTally();
  }

  // Wilson's 95 % interval of a share, and the p value of the two-sided sign test, as spo_jax/core/tally.py has them.
  function wilson(wins, count) {
    if (!count) return [0, 1];
    const z = 1.959963984540054, share = wins / count, wide = 1 + (z * z) / count;
    const centre = (share + (z * z) / (2 * count)) / wide;
    const reach = (z / wide) * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
    return [Math.max(0, centre - reach), Math.min(1, centre + reach)];
  }

  function signTest(wins, count) {
    const fewer = Math.min(wins, count - wins);
    let term = -count * Math.LN2, sum = 0; // log of the probability of k wins
    for (let k = 0; k <= fewer; k++) {
      sum += Math.exp(term);
      term += Math.log((count - k) / (k + 1));
    }
    return Math.min(1, 2 * sum);
  }

  const percent = (share) => `${Math.round(100 * share)} %`;
  const between = ([low, high]) => `${Math.round(100 * low)} to ${Math.round(100 * high)} %`;
  const winnerOf = (vote) => (vote.label === 0.5 ? null : vote.sides[vote.label]);

  function agreement(score, votes) {
    let same = 0, count = 0;
    for (const each of votes) {
      const item = DATA.items.find((one) => one.prompt === each.prompt && one.image === each.image);
      const values = item && pair.map((name) => item.shown[name]?.scores[score.name]);
      if (!item || values.some((value) => value == null) || values[0] === values[1] || !winnerOf(each)) continue;
      const better = (values[0] > values[1]) !== score.lower ? pair[0] : pair[1];
      count += 1;
      same += better === winnerOf(each);
    }
    return count ? `${percent(same / count)} of ${count}` : "–";
  }

  function showTally() {
    const votes = votesOf(pair).filter((each) => each.blind);
    const rest = votesOf(pair).length - votes.length;
    const decided = votes.filter(winnerOf);
    const wins = decided.filter((each) => winnerOf(each) === pair[0]).length;
    const row = (...cells) => element("tr", {}, ...cells.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell)));
    const head = ["Judge", `${pair[0]} wins`, "95 % interval", "Of", "Agrees with votes"];
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map((cell) => element("th", { scope: "col" }, cell)))));
    const body = element("tbody", {}, row("your blind votes", decided.length ? percent(wins / decided.length) : "–", between(wilson(wins, decided.length)), `${decided.length} decided`, "–"));
    for (const score of DATA.scores.filter((each) => !each.sign)) {
      const share = DATA.wins[score.name]?.[pair[0]]?.[pair[1]];
      body.append(row(score.text, share ? percent(share[0]) : "–", share ? between(share.slice(1)) : "–", "all images", agreement(score, decided)));
    }
    table.append(body);
    const ties = votes.length - decided.length;
    const p = decided.length ? signTest(wins, decided.length) : 1;
    const sentence = `${pair[0]} ${wins}, ${pair[1]} ${decided.length - wins}, ties ${ties}. Sign test: p = ${p < 0.001 ? "below 0.001" : p.toPrecision(2)}` +
      (p < 0.05 ? "." : ", so this may be chance.") + (rest ? ` Not counted: ${rest} after the names were shown.` : "");
    byId("tally").replaceChildren(element("h3", {}, `${pair[0]} against ${pair[1]}`), element("p", { id: "tally-text" }, sentence), table);
    byId("tally").hidden = false;
    showButtons();
    say("");
  }

  // What prepare --dataset=folder reads: image_0 is the left image, and label says which one is preferred.
  const lines = () => kept.votes.map((vote) => ({
    prompt: vote.text, image_0: vote.files[0], image_1: vote.files[1], label: vote.label,
    contestant_0: vote.sides[0], contestant_1: vote.sides[1], blind: vote.blind, time: vote.time,
  }));
  const asJsonl = () => lines().map((line) => JSON.stringify(line) + "\n").join("");
  const quoted = (cell) => `"${String(cell).replaceAll('"', '""')}"`;
  const asCsv = () => [Object.keys(lines()[0] || {}), ...lines().map(Object.values)].map((row) => row.map(quoted).join(",") + "\n").join("");

  function save(name, text, type) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function pressed(event) {
    if (byId("voting").hidden || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.closest?.("input, select, textarea")) return;
    const label = { 1: 0, 2: 1, 0: 0.5 }[event.key];
    if (label != null) vote(label);
    else if (event.key.toLowerCase() === "u") undo();
    else return;
    event.preventDefault();
  }

  byId("booth").hidden = false;
  if (voters.length < 2) {
    byId("setup").hidden = true;
    say("There are no two contestants with images in this page.");
  } else {
    read();
    for (const id of ["vote-left", "vote-right"]) markSmall(byId(id));
    const options = voters.map((name) => [name, name]);
    const last = kept.votes.length ? JSON.parse(kept.votes.at(-1).pair) : voters;
    fill(byId("vote-first"), options, last[0]);
    fill(byId("vote-second"), options, last[1]);
    for (const id of ["vote-first", "vote-second"]) byId(id).addEventListener("change", offer);
    offer();
    byId("start").addEventListener("click", start);
    byId("undo").addEventListener("click", undo);
    byId("end").addEventListener("click", finish);
    byId("save-jsonl").addEventListener("click", () => save("train.jsonl", asJsonl(), "application/x-ndjson"));
    byId("save-csv").addEventListener("click", () => save("train.csv", asCsv(), "text/csv"));
    byId("forget").addEventListener("click", () => {
      kept.votes = kept.votes.filter((each) => each.pair !== pairKey(pair));
      kept.shown = kept.shown.filter((each) => each !== pairKey(pair));
      keep();
      offer();
      say("These votes are forgotten.");
    });
    document.querySelectorAll("[data-vote]").forEach((button) => button.addEventListener("click", () => vote(Number(button.dataset.vote))));
    addEventListener("keydown", pressed);
  }
}
