/** The chat: a question with pictures to one model, or to two side by side, turn by turn. */

import { AnswerCard } from './answer_card.js';
import { responseFormat, startFormat } from './answer_format.js';
import { askModel } from './ask_model.js';
import { messagesOf, tooMany } from './conversation.js';
import { announce, byId, el, note } from './dom.js';
import { fillModels } from './models.js';
import { acceptedTypes, drawnPicture, filesOf, shown, Tray } from './pictures.js';

const NEAR = 160; // pixels from the end of the page, within which it follows what comes

/** @type {import('./conversation.js').Turn[]} */
let turns = [];
/** @type {AbortController | null} */
let running = null;
/** @type {Tray} */
let tray;

export function startChat() {
  tray = new Tray(byId('tray'), byId('tray-note'), byId('question'), byId('send'), () => tooManyOf(question('')));
  startFormat();
  startPictures();
  byId('composer').addEventListener('submit', (/** @type {Event} */ event) => {
    event.preventDefault();
    void send();
  });
  byId('question').addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('composer').requestSubmit();
  });
  byId('stop').addEventListener('click', () => running?.abort());
  byId('fresh').addEventListener('click', begin);
  byId('compare').addEventListener('change', compare);
  addEventListener('beforeunload', (event) => {
    if (running || byId('question').value.trim() || tray.pictures.length) event.preventDefault();
  });
  const wide = matchMedia('(min-width: 56rem)');
  const fold = () => (byId('settings').open = wide.matches);
  wide.addEventListener('change', fold);
  fold();
}

/** Shows who else answers: not the same model, where there is another. */
function compare() {
  const { model, other } = { model: byId('model'), other: byId('other') };
  byId('other-field').hidden = !byId('compare').checked;
  if (other.value !== model.value) return;
  const names = [...other.options].map((option) => option.value);
  other.value = names.find((name) => name !== model.value) ?? model.value;
}

/** When the list of models has come anew. @param {string} [chosen] */
export function showModels(chosen) {
  fillModels(byId('model'), chosen);
  fillModels(byId('other'));
  const accepted = acceptedTypes();
  byId('choose').accept = accepted;
  byId('choose').parentElement.hidden = byId('draw').hidden = !accepted;
}

function startPictures() {
  const view = byId('chat');
  byId('choose').addEventListener('change', async () => {
    await tray.add(byId('choose').files);
    byId('choose').value = '';
    byId('question').focus();
  });
  byId('draw').addEventListener('click', async () => {
    await tray.add([await drawnPicture()]);
    byId('question').value ||= 'What is in the picture?';
    byId('question').focus();
  });
  document.addEventListener('paste', (event) => {
    const files = filesOf(event.clipboardData);
    if (view.hidden || !files.length) return;
    event.preventDefault();
    void tray.add(files);
  });
  view.addEventListener('dragover', (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    view.classList.add('over');
  });
  view.addEventListener('dragleave', () => view.classList.remove('over'));
  view.addEventListener('drop', (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    view.classList.remove('over');
    void tray.add(filesOf(event.dataTransfer));
  });
}

function begin() {
  running?.abort();
  turns = [];
  tray.take();
  byId('thread').replaceChildren();
  byId('empty').hidden = false;
  byId('question').focus();
}

async function send() {
  const text = byId('question').value.trim();
  if (running || tray.reading || (!text && !tray.pictures.length) || !numbersAreRight()) return;
  let format;
  try {
    format = responseFormat();
  } catch {
    byId('settings').open = true;
    return;
  }
  const turn = question(text);
  note(byId('tray-note'), tooManyOf(turn));
  if (byId('tray-note').textContent) return;
  tray.take();
  turns.push(turn);
  byId('question').value = '';
  byId('empty').hidden = true;
  const names = models();
  const cards = names.map((name) => new AnswerCard(name, format !== null));
  showTurn(turn, cards);
  await answerAll(turn, names, cards, format);
}

const models = () => (byId('compare').checked ? [byId('model').value, byId('other').value] : [byId('model').value]);

/** As it stands now. @param {string} text @returns {import('./conversation.js').Turn} */
const question = (text) => ({ text, pictures: tray.pictures, answers: [] });

/** What a model is sent. @param {import('./conversation.js').Turn} turn @param {number} column */
function messages(turn, column) {
  const before = byId('remember').checked ? turns.filter((one) => one !== turn) : [];
  return messagesOf([...before, turn], column, byId('system').value.trim());
}

/** @param {import('./conversation.js').Turn} turn */
const tooManyOf = (turn) => models().reduce((found, _, column) => found || tooMany(messages(turn, column)), '');

/**
 * @param {import('./conversation.js').Turn} turn
 * @param {string[]} names
 * @param {AnswerCard[]} cards
 * @param {object | null} format
 */
async function answerAll(turn, names, cards, format) {
  const mine = (running = new AbortController());
  busy(true);
  announce(names.length > 1 ? 'Both models are answering' : 'The model is answering');
  const follow = setInterval(() => followEnd(), 100);
  turn.answers = await Promise.all(
    cards.map((card, column) => {
      const request = { model: names[column], messages: messages(turn, column) };
      return askModel({ ...request, ...sampling(), ...(format && { response_format: format }) }, card, mine.signal);
    }),
  );
  clearInterval(follow);
  followEnd();
  if (running === mine) {
    running = null;
    busy(false);
    if (!mine.signal.aborted && !turn.answers.some(Boolean) && cards.every((card) => card.failed)) {
      const atEnd = isAtEnd();
      takeBack(turn);
      followEnd(atEnd); // (what is put back makes the composer higher)
    }
  }
  announce(cards.map((card, column) => `${names[column]}: ${card.text.slice(0, 400) || 'no answer'}`).join('. '));
}

/** A question that nobody could answer can be changed, and asked again. @param {import('./conversation.js').Turn} turn */
function takeBack(turn) {
  byId('question').value ||= turn.text;
  if (!tray.pictures.length) tray.put(turn.pictures);
}

/** Else the first wrong one says what it may be. */
function numbersAreRight() {
  const wrong = ['temperature', 'max-tokens', 'seed'].map(byId).find((field) => !field.validity.valid);
  if (!wrong) return true;
  byId('settings').open = true;
  wrong.reportValidity();
  return false;
}

function sampling() {
  const seed = byId('seed').value;
  return {
    ...(byId('temperature').value && { temperature: Number(byId('temperature').value) }),
    ...(byId('max-tokens').value && { max_tokens: Number(byId('max-tokens').value) }),
    ...(seed && { seed: Number(seed) }),
  };
}

/** @param {boolean} now */
function busy(now) {
  const held = document.activeElement;
  byId('stop').hidden = !now;
  byId('send').hidden = now;
  byId('thread').setAttribute('aria-busy', String(now));
  if (held === byId('send') || held === byId('stop')) byId(now ? 'stop' : 'question').focus();
}

/** @param {import('./conversation.js').Turn} turn @param {AnswerCard[]} cards */
function showTurn(turn, cards) {
  const pictures = turn.pictures.map((picture) => shown(picture, true));
  byId('thread').append(
    el(
      'div',
      { className: 'turn' },
      el(
        'article',
        { className: 'asked', 'aria-label': 'You' },
        pictures.length ? el('div', { className: 'pictures' }, ...pictures) : null,
        turn.text ? el('p', { className: 'said' }, turn.text) : null,
      ),
      el('div', { className: `answers of-${cards.length}` }, ...cards.map((card) => card.element)),
    ),
  );
  scrollTo({ top: document.documentElement.scrollHeight });
}

const isAtEnd = () => document.documentElement.scrollHeight - innerHeight - scrollY < NEAR;

function followEnd(follows = isAtEnd()) {
  if (follows) scrollTo({ top: document.documentElement.scrollHeight });
}
