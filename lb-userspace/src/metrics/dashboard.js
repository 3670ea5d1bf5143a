'use strict';
// Whatever the daemon says is put into text nodes only; attributes get numbers and words of this file.
const PERIOD_MS = 1000, DEADLINE_MS = 5000, MANY = 12, SHOWN = 100, HISTORY = 60;
const byId = id => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
function setText(node, text) { if (node.textContent !== text) node.textContent = text; }
function setClass(node, name) { if (node.className !== name) node.className = name; }
const add = (parent, tag, className, text) => parent.appendChild(element(tag, className, text));

function scaled(value, unit) {
  const steps = ['', 'k', 'M', 'G', 'T', 'P', 'E'];
  let step = 0;
  while (value >= 1000 && step < steps.length - 1) { value /= 1000; step++; }
  return (step === 0 || value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 1 : 2)) + ' ' + steps[step] + unit;
}
const count = value => value.toLocaleString('en');
function duration(seconds) {
  const s = Math.floor(seconds), d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return d + ' d ' + h + ' h';
  if (h) return h + ' h ' + m + ' min';
  return m ? m + ' min ' + s % 60 + ' s' : s + ' s';
}

// Rates from two readings; a counter that fell has begun anew and has no rate yet. The last minute is kept for the curves.
let readings = new Map();
function rates(next, key, now, packets, bytes) {
  const last = readings.get(key), history = last ? last.history : [];
  // Drawn once more, as after a word in the filter.
  if (last && last.now === now) {
    next.set(key, last);
    return last.rate;
  }
  let rate = null;
  if (last && now > last.now && packets >= last.packets && bytes >= last.bytes) {
    const seconds = (now - last.now) / 1000;
    rate = { packets: (packets - last.packets) / seconds, bits: 8 * (bytes - last.bytes) / seconds, history };
    history.push(rate.packets, rate.bits);
    if (history.length > 2 * HISTORY) history.splice(0, history.length - 2 * HISTORY);
  }
  next.set(key, { now, packets, bytes, history, rate });
  return rate;
}
const packetRate = rate => rate ? scaled(rate.packets, 'pkt/s') : '–';
const bitRate = rate => rate ? scaled(rate.bits, 'bit/s') : '–';

// A curve of every second number from `first` on, newest at the right. What it says is beside it as a number.
function spark() {
  const space = 'http://www.w3.org/2000/svg', node = document.createElementNS(space, 'svg');
  node.setAttribute('class', 'spark');
  node.setAttribute('viewBox', '0 0 118 20');
  node.setAttribute('preserveAspectRatio', 'none');
  node.setAttribute('aria-hidden', 'true');
  const line = node.appendChild(document.createElementNS(space, 'polyline'));
  line.setAttribute('fill', 'none');
  line.setAttribute('stroke', 'currentColor');
  line.setAttribute('stroke-width', '1.5');
  line.setAttribute('vector-effect', 'non-scaling-stroke');
  node.update = (rate, first) => {
    const values = rate ? rate.history.filter((_, at) => at % 2 === first) : [], top = Math.max(1e-9, ...values);
    const points = values.map((value, at) =>
      (118 - 2 * (values.length - 1 - at)) + ',' + (19 - 18 * value / top).toFixed(1));
    line.setAttribute('points', points.join(' '));
  };
  return node;
}

// Keeps one child per key, in order: what is on the page stays in place, selected and unfolded.
function keyed(parent, rows, make) {
  const nodes = parent.keyed || (parent.keyed = new Map());
  const seen = new Set();
  let at = parent.firstChild;
  for (const [key, row] of rows) {
    seen.add(key);
    let node = nodes.get(key);
    if (!node) nodes.set(key, node = make());
    if (node === at) at = at.nextSibling; else parent.insertBefore(node, at);
    node.update(row);
  }
  for (const [key, node] of nodes) if (!seen.has(key)) { node.remove(); nodes.delete(key); }
}

function line(columns) {
  const row = element('tr');
  const cells = columns.map(([label, className]) => {
    const cell = add(row, 'td', className);
    cell.dataset.label = label;
    return cell;
  });
  return [row, cells];
}
function bar(parent) {
  const fill = add(add(parent, 'div', 'track'), 'div', 'fill');
  return percent => { fill.style.width = Math.max(0, Math.min(100, percent)) + '%'; return fill; };
}

// Sign, word and colour of a state.
const SIGNS = { good: '● ', warn: '▲ ', bad: '✖ ', '': '' };
function setBadge(node, kind, text) { setClass(node, 'badge ' + kind); setText(node, SIGNS[kind] + text); }

function interfaceLine() {
  const [row, [name, mode, warning]] = line([['', 'name'], ['', ''], ['', 'dim']]);
  const badge = add(mode, 'span');
  row.update = nic => {
    setText(name, nic.name);
    setBadge(badge, nic.mode === 'native' ? 'good' : nic.mode === 'generic' ? 'warn' : 'bad', nic.mode);
    setText(warning, nic.warning || '');
  };
  return row;
}

const usable = backend => backend.health !== 'down' && backend.admin === 'enabled' && backend.reachable;
const COLUMNS = [['Backend', ''], ['Admin', ''], ['Health', ''], ['Weight', 'num'], ['Share', ''],
  ['Packets', 'num'], ['Bits', 'num'], ['Total', 'num'], ['Last minute', '']];
function backendLine() {
  const [row, [name, admin, health, weight, share, packets, bits, total, curve]] = line(COLUMNS);
  const label = add(name, 'span', 'name'), address = add(name, 'span', 'reason');
  const adminBadge = add(admin, 'span'), healthBadge = add(health, 'span'), why = add(health, 'span', 'reason');
  const slots = add(share, 'span'), fill = bar(share), drawing = curve.appendChild(spark());
  row.update = ([backend, all, rate]) => {
    row.dataset.backend = backend.name;
    setText(label, backend.name);
    const host = backend.address.includes(':') && backend.port ? '[' + backend.address + ']' : backend.address;
    setText(address, host + (backend.port ? ':' + backend.port : '') + (backend.origin === 'runtime' ? ', set at run time' : ''));
    setBadge(adminBadge, backend.admin === 'enabled' ? '' : 'warn', backend.admin);
    setBadge(healthBadge, !backend.reachable || backend.health === 'down' ? 'bad' : backend.health === 'up' ? 'good' : 'warn',
      backend.health + (backend.reachable ? '' : ', no next hop'));
    const quiet = backend.reachable && backend.health === 'up' || !backend.health_reason;
    setText(why, quiet ? '' : backend.health_reason);
    setText(weight, String(backend.weight));
    const percent = all ? 100 * backend.slots / all : 0;
    setText(slots, percent.toFixed(1) + ' %');
    row.dataset.slots = backend.slots;
    fill(percent);
    setText(packets, packetRate(rate));
    setText(bits, bitRate(rate));
    setText(total, count(backend.packets));
    drawing.update(rate, 0);
  };
  return row;
}

// A service as a whole: what it is called, and what becomes of its packets.
const POOL = {
  'up': ['good', 'up', ''],
  'up-panic': ['warn', 'panic', 'too few backends are healthy: every enabled one is used'],
  'down': ['bad', 'all down', 'nobody takes new connections'],
  'down-backup': ['warn', 'backups in use', 'its other backends are no quorum: the backups serve'],
  'down-panic': ['bad', 'no quorum, panic', 'it has no quorum: every enabled backend is used'],
  'down-degraded': ['bad', 'no quorum', 'it has no quorum: the backends that are healthy serve on'],
};
function poolOf(service) {
  const [kind, word, meaning] = POOL[service.pool.state] || ['warn', service.pool.state, service.pool.state];
  if (service.pool.state === 'up' && service.backends.some(backend => backend.health === 'down' || !backend.reachable)) return ['warn', 'degraded', ''];
  if (service.pool.state !== 'down') return [kind, word, meaning];
  return [kind, word, meaning + ', packets are ' + (service.pool.on_all_down === 'reject' ? 'rejected' : 'dropped')];
}

function serviceCard() {
  const card = element('details', 'card'), head = add(add(card, 'summary'), 'span', 'head');
  const name = add(head, 'h3', 'name'), pool = add(head, 'span'), state = add(head, 'span'), what = add(head, 'span', 'dim'), rate = add(head, 'span', 'rate');
  const packets = add(rate, 'span');
  rate.append('  ');
  const bits = add(rate, 'span');
  const table = add(card, 'table', 'backends');
  const titles = add(add(table, 'thead'), 'tr');
  for (const [label, className] of COLUMNS) add(titles, 'th', className, label).scope = 'col';
  const body = add(table, 'tbody'), foot = add(card, 'p', 'dim');
  card.update = ([service, total, backends]) => {
    card.dataset.service = service.name;
    setText(name, service.name);
    const port = service.port === '0' ? 'every port' : 'port ' + service.port;
    setText(what, service.addresses.join(', ') + ' ' + service.protocol + ' ' + port + ', ' + service.forward + ', ' + service.scheduler);
    const good = service.backends.filter(usable).length;
    const [kind, word, meaning] = poolOf(service);
    setBadge(pool, kind, word);
    pool.dataset.pool = service.pool.state;
    pool.title = meaning;
    setBadge(state, good === 0 ? 'bad' : good < service.backends.length ? 'warn' : 'good', good + ' of ' + service.backends.length + ' backends');
    setText(packets, packetRate(total));
    setText(bits, bitRate(total));
    if (!card.open) return;
    keyed(body, backends, backendLine);
    const slots = service.slots, parts = [count(service.packets) + ' packets', scaled(service.bytes, 'B') + ' in all',
      count(slots.total) + ' slots: ' + slots.plain + ' plain, ' + slots.moving + ' moving, ' + slots.tracked + ' tracked'];
    if (service.nat) parts.push(count(service.nat.sessions) + ' NAT sessions');
    setText(foot, parts.join(', '));
  };
  return card;
}

function dropLine() {
  const [row, [reason, help, packets]] = line([['', 'name'], ['', 'dim'], ['', 'num']]);
  const total = add(packets, 'span'), now = add(packets, 'span', 'reason');
  row.update = ([drop, rate]) => {
    row.dataset.reason = drop.reason;
    setText(reason, drop.reason);
    setText(help, drop.help);
    setText(total, count(drop.packets));
    setText(now, rate && rate.packets > 0 ? '▲ ' + scaled(rate.packets, 'pkt/s') : '');
    setClass(now, rate && rate.packets > 0 ? 'reason warn' : 'reason');
  };
  return row;
}

function tableLine() {
  const [row, [name, use, entries, capacity]] = line([['', 'name'], ['', ''], ['', 'num'], ['', 'num']]);
  const percent = add(use, 'span'), fill = bar(use);
  row.update = room => {
    const part = 100 * room.entries / Math.max(1, room.capacity), kind = part > 90 ? 'bad' : part > 80 ? 'warn' : '';
    setText(name, room.name.replaceAll('_', ' '));
    setText(percent, SIGNS[kind] + part.toFixed(1) + ' %');
    setClass(fill(part), 'fill ' + kind);
    setText(entries, count(room.entries));
    setText(capacity, count(room.capacity));
  };
  return row;
}

function routerCard() {
  const card = element('div', 'card'), head = add(card, 'span', 'head');
  const name = add(head, 'h3', 'name'), state = add(head, 'span'), what = add(head, 'span', 'dim'), list = add(card, 'dl');
  const fields = ['Priority', 'Master', 'Since', 'Addresses', 'Missing'].map(label => [add(list, 'dt', '', label), add(list, 'dd')]);
  card.update = router => {
    card.dataset.router = router.name;
    setText(name, router.name);
    setBadge(state, { master: 'good', backup: 'good', fault: 'bad' }[router.state] || 'warn', router.state + (router.held ? ', held' : ''));
    setText(what, 'VRRP ' + router.router_id + ' on ' + router.interface);
    const lowered = router.effective_priority !== router.priority ? router.effective_priority + ' instead of ' : '';
    const master = router.state === 'master' ? 'this node' : router.master ? router.master + ' (' + router.master_priority + ')' : 'nobody is heard';
    const values = [lowered + router.priority, master,
      duration(Math.max(0, Date.now() / 1000 - router.since)) + ' ago: ' + router.reason, router.addresses.join(', '), router.faults.join('; ')];
    fields.forEach(([term, value], at) => {
      setText(value, values[at]);
      term.hidden = value.hidden = values[at] === '';
    });
  };
  return card;
}

function tile() {
  const node = element('div', 'tile'), label = add(node, 'span', 'dim'), value = add(node, 'span', 'value');
  const note = add(node, 'span', 'note dim'), drawing = node.appendChild(spark());
  node.update = ([name, text, small, rate, first]) => {
    setText(label, name);
    setText(value, text);
    setText(note, small);
    drawing.toggleAttribute('hidden', !rate);
    if (rate) drawing.update(rate, first);
  };
  return node;
}

function troubleLine() {
  const node = element('li');
  node.update = ([kind, text]) => { setClass(node, kind); setText(node, SIGNS[kind] + text); };
  return node;
}

// What an operator should know first, worst first.
function troubles(snapshot) {
  const bad = [], warn = [], status = snapshot.status;
  for (const nic of status.interfaces) {
    if (nic.mode === 'generic') warn.push(nic.name + ' runs in generic mode, which is slower: ' + (nic.warning || 'set so'));
    else if (nic.mode !== 'native') bad.push('the program is not attached to ' + nic.name + ': ' + (nic.warning || nic.mode));
  }
  for (const router of snapshot.pair) {
    if (router.state === 'fault') bad.push('pair ' + router.name + ': fault, ' + router.faults.join('; '));
    else if (router.faults.length) warn.push('pair ' + router.name + ': ' + router.faults.join('; '));
    if (router.held) warn.push('pair ' + router.name + ' is held: this node does not become master');
  }
  for (const service of snapshot.services) {
    const down = service.backends.filter(backend => backend.health === 'down' || !backend.reachable);
    const [kind, , meaning] = poolOf(service);
    if (meaning) (kind === 'bad' ? bad : warn).push('service ' + service.name + ': ' + meaning);
    else if (!service.backends.some(backend => backend.slots > 0)) bad.push('service ' + service.name + ' has no backend: its packets are dropped');
    if (down.length && service.pool.state !== 'down') warn.push('service ' + service.name + ': ' + down.slice(0, 5).map(backend => backend.name).join(', ') +
      (down.length > 5 ? ' and ' + (down.length - 5) + ' more' : '') + (down.length === 1 ? ' is' : ' are') + ' down');
  }
  for (const room of status.tables || []) {
    if (room.entries > .8 * room.capacity) warn.push('table ' + room.name.replaceAll('_', ' ') + ' is nearly full');
  }
  for (const warning of status.warnings || []) warn.push(warning);
  const rows = [...bad.map(text => ['bad', text]), ...warn.map(text => ['warn', text])];
  const list = rows.slice(0, 8);
  if (rows.length > 8) list.push(['warn', 'and ' + (rows.length - 8) + ' more']);
  if (!rows.length) list.push(['good', 'All backends are up, and everything is attached.']);
  return list;
}

let first = true, drawn = null;
function draw(snapshot, now) {
  const status = snapshot.status, next = new Map();
  document.title = status.node + ' – lbd';
  setText(byId('node'), status.node);
  setText(byId('about'), 'up ' + duration(status.uptime_seconds) + ', lbd ' + status.version + ', kernel ' + status.kernel);
  keyed(byId('trouble'), troubles(snapshot).map(row => [row.join(), row]), troubleLine);

  const wanted = byId('filter').value.trim().toLowerCase(), troubled = byId('troubled').checked;
  byId('filterline').hidden = snapshot.services.length <= 1;
  const cards = [];
  let packets = 0, bytes = 0, backends = 0, good = 0, hidden = 0;
  for (const service of snapshot.services) {
    packets += service.packets;
    bytes += service.bytes;
    const key = JSON.stringify([service.name]), fine = service.backends.filter(usable).length;
    backends += service.backends.length;
    good += fine;
    const total = rates(next, key, now, service.packets, service.bytes);
    const rows = service.backends.map(backend => {
      const own = JSON.stringify([service.name, backend.name]);
      return [own, [backend, service.slots.total, rates(next, own, now, backend.packets, backend.bytes)]];
    });
    if (!service.name.toLowerCase().includes(wanted) || (troubled && fine === service.backends.length)) continue;
    if (cards.length < SHOWN) cards.push([key, [service, total, rows]]); else hidden++;
  }
  keyed(byId('services'), cards, () => {
    const card = serviceCard();
    card.open = snapshot.services.length <= MANY;
    // What is unfolded is drawn at once.
    card.addEventListener('toggle', () => { if (card.open) redraw(); });
    return card;
  });
  byId('more').hidden = hidden === 0;
  setText(byId('more'), hidden + ' more; the filter finds them.');

  const dropped = snapshot.drops.reduce((sum, drop) => sum + drop.packets, 0), all = byId('alldrops').checked;
  const drops = snapshot.drops.filter(drop => all || drop.packets > 0);
  keyed(byId('drops').tBodies[0], drops.map(drop =>
    [drop.reason, [drop, rates(next, JSON.stringify(['', '', drop.reason]), now, drop.packets, 0)]]), dropLine);
  byId('nodrops').hidden = drops.length > 0;

  const sum = rates(next, 'sum', now, packets, bytes), lost = rates(next, 'drops', now, dropped, 0);
  keyed(byId('tiles'), [
    ['packets', ['Packets', packetRate(sum), count(packets) + ' in all', sum, 0]],
    ['bits', ['Bits', bitRate(sum), scaled(bytes, 'B') + ' in all', sum, 1]],
    ['drops', ['Dropped', packetRate(lost), count(dropped) + ' in all', lost, 0]],
    ['backends', ['Backends in use', good + ' of ' + backends, status.services + (status.services === 1 ? ' service' : ' services'), null, 0]],
    ['flows', ['Recorded flows', count(status.tracked_flows), count(status.half_open_flows) + ' half open', null, 0]],
  ], tile);

  byId('pair-section').hidden = snapshot.pair.length === 0;
  keyed(byId('pair'), snapshot.pair.map(router => [router.name, router]), routerCard);
  keyed(byId('tables').tBodies[0], (status.tables || []).map(room => [room.name, room]), tableLine);
  setText(byId('flowsline'), count(status.refused_flows) + ' flows found no room; NAT sessions: ' + count(status.nat.made) + ' made, ' +
    count(status.nat.exhausted + status.nat.full) + ' refused.');
  keyed(byId('interfaces').tBodies[0], status.interfaces.map(nic => [nic.name, nic]), interfaceLine);
  const process = snapshot.process;
  setText(byId('foot'), 'Configuration ' + status.config_hash + (status.runtime_changes ? ' with ' + status.runtime_changes + ' runtime changes' : '') +
    '; ' + scaled(status.map_bytes, 'B') + ' of maps' + (process ? ', ' + scaled(process.resident_bytes, 'B') + ' of memory' : '') + '.');
  readings = next;
  first = false;
}

function redraw() { if (drawn) draw(drawn.snapshot, drawn.now); }
for (const id of ['filter', 'troubled', 'alldrops']) byId(id).addEventListener('input', redraw);

let failedSince = null;
function banner(reason) {
  const node = byId('banner');
  if (reason === null) {
    failedSince = null;
  } else {
    failedSince = failedSince || new Date();
    setText(node, 'lbd does not answer since ' + failedSince.toLocaleTimeString() + ': ' + reason +
      (first ? '' : '. What is shown below is old.'));
  }
  node.hidden = reason === null;
  document.body.classList.toggle('stale', reason !== null && !first);
}

async function poll() {
  const abort = new AbortController(), timer = setTimeout(() => abort.abort(), DEADLINE_MS);
  let snapshot = null;
  try {
    const answer = await fetch('/api/snapshot.json', { cache: 'no-store', signal: abort.signal });
    if (!answer.ok) throw new Error((await answer.text()).trim() || 'status ' + answer.status);
    snapshot = await answer.json();
  } catch (error) {
    banner(abort.signal.aborted ? 'no answer within ' + DEADLINE_MS / 1000 + ' s' : error.message);
  } finally {
    clearTimeout(timer);
  }
  // Out here a mistake of this page is an error in the console, not one of the daemon's.
  if (snapshot) {
    drawn = { snapshot, now: performance.now() };
    redraw();
    banner(null);
  }
}

// The theme: as the system, unless somebody chose; a browser that keeps nothing forgets the choice.
const dark = matchMedia('(prefers-color-scheme: dark)'), theme = byId('theme');
function paint() { document.documentElement.classList.toggle('dark', theme.value ? theme.value === 'dark' : dark.matches); }
try { theme.value = localStorage.getItem('lbd-theme') || ''; } catch { /* no storage */ }
theme.addEventListener('change', () => {
  paint();
  try { localStorage.setItem('lbd-theme', theme.value); } catch { /* no storage */ }
});
dark.addEventListener('change', paint);
paint();

// One request at a time, none while nobody looks; a daemon with much to tell is asked less often.
async function loop() {
  for (;;) {
    const start = performance.now();
    if (!document.hidden) await poll().catch(error => console.error(error));
    const took = performance.now() - start;
    await new Promise(resolve => setTimeout(resolve, Math.max(100, PERIOD_MS - took, Math.min(5 * took, 10000))));
  }
}
loop();
