/** The page: which view is shown, and what the views tell each other. */

import { ApiError, get } from './api.js';
import { showModels, startChat } from './chat.js';
import { byId, note, sentence } from './dom.js';
import { showForm } from './job_form.js';
import { enterJobs, leaveJobs, startJobs } from './jobs.js';
import { startKey } from './key.js';
import { loadModels } from './models.js';
import { startTheme } from './theme.js';
import { showFiles, startTrainingFile } from './training_file.js';

const TITLES = { chat: 'Chat', data: 'Training data', jobs: 'Jobs' };

const AGAIN = 5000; // milliseconds, until a server that was away is asked again
const AWAY = [0, 503];

/** @type {ReturnType<typeof setTimeout> | undefined} */
let again;
let shows = 0; // how often a view was asked for: what comes late for an earlier one is left

/** Shows what the address says, and asks the server for what the view needs. @param {string} [model] to talk to */
async function show(model) {
  const [asked, id = ''] = location.hash.slice(1).split('/');
  const view = asked in TITLES ? asked : 'chat';
  for (const name of Object.keys(TITLES)) byId(name).hidden = name !== view;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.getAttribute('href') === `#${view}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${TITLES[/** @type {keyof TITLES} */ (view)]} – Opsin playground`;
  leaveJobs();
  clearTimeout(again);
  const mine = ++shows;
  try {
    await loadModels();
    if (mine !== shows) return;
    note(byId('notice'), '');
    showModels(model);
    if (view === 'data') await showFiles();
    if (view === 'jobs') await enterJobs(id);
  } catch (error) {
    if (mine !== shows) return;
    note(byId('notice'), sentence(error));
    if (error instanceof ApiError && AWAY.includes(error.status)) again = setTimeout(() => show(model), AGAIN);
  }
}

async function nameServer() {
  try {
    const about = await get('version');
    byId('served').textContent = about.model;
  } catch {
    byId('served').textContent = '';
  }
}

function start() {
  /** @type {string | undefined} */
  let wanted;
  startTheme();
  startKey(() => {
    void show();
    void nameServer();
  });
  startChat();
  startTrainingFile(async (checked) => {
    location.hash = 'jobs';
    await showForm(true, checked);
  });
  startJobs((model) => {
    wanted = model;
    location.hash = 'chat';
    byId('question').focus();
  });
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) loadModels().then(() => showModels(), () => {}); // (what has been trained meanwhile)
  });
  byId('skip').addEventListener('click', () => byId('main').focus());
  addEventListener('hashchange', () => {
    void show(wanted);
    wanted = undefined;
  });
  for (const name of ['dragover', 'drop']) addEventListener(name, (event) => event.preventDefault());
  void show();
  void nameServer();
}

start();
