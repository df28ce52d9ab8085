/** Pictures and videos of the question that is being written: chosen, dropped or pasted. */

import { el, note, sentence } from './dom.js';
import { mostOf } from './models.js';

const KINDS = {
  image: ['png', 'jpeg', 'webp', 'gif'].map((kind) => `image/${kind}`),
  video: ['mp4', 'webm', 'quicktime', 'x-matroska', 'x-msvideo'].map((kind) => `video/${kind}`),
};

const MANY = 3; // pictures, that can be removed together

/** @typedef {{name: string, url: string}} Picture or a video. url: a data: URL */

/** @param {Picture} picture */
export const isVideo = ({ url }) => url.startsWith('data:video/');

/** @param {Picture} picture @param {boolean} plays whether a video can be played there */
export function shown(picture, plays) {
  const { name, url } = picture;
  if (!isVideo(picture)) return el('img', { src: url, alt: name });
  return el('video', { src: url, muted: true, controls: plays, 'aria-label': name });
}

/** What the model takes, for a file picker. */
export function acceptedTypes() {
  return [...(mostOf('image') ? KINDS.image : []), ...(mostOf('video') ? ['video/*'] : [])].join();
}

/** @param {File} file @returns {Promise<Picture>} */
export async function readPicture(file) {
  const name = file.name || 'pasted picture';
  const kind = Object.entries(KINDS).find(([, types]) => types.includes(file.type))?.[0];
  if (!kind) throw new Error(`${name} is not a PNG, JPEG, WEBP or GIF picture, nor a video`);
  if (!mostOf(kind)) throw new Error(`${name} is ${kind === 'image' ? 'a picture' : 'a video'}, and this model takes none`);
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${name} cannot be read`));
    reader.readAsDataURL(file);
  });
  return { name, url };
}

/** @param {DataTransfer | null} given @returns {File[]} */
export const filesOf = (given) => (given ? [...given.files] : []);

export class Tray {
  /** @type {Picture[]} */
  pictures = [];
  reading = 0; // calls of add that have not ended

  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} place of what is wrong
   * @param {HTMLElement} back takes the focus
   * @param {HTMLButtonElement} sender waits while files are read
   * @param {() => string} check what is wrong with all pictures together
   */
  constructor(list, place, back, sender, check) {
    this.check = check;
    this.list = list;
    this.place = place;
    this.back = back;
    this.sender = sender;
  }

  /** @param {Iterable<File>} files */
  async add(files) {
    const wrong = [];
    this.wait(1);
    for (const file of files) {
      try {
        const picture = await readPicture(file);
        this.pictures.push(picture); // (to those that are there now)
      } catch (error) {
        wrong.push(sentence(error));
      }
    }
    this.wait(-1);
    note(this.place, [...wrong, this.check()].filter(Boolean).join('. '));
    this.show();
  }

  /** @param {number} more */
  wait(more) {
    this.reading += more;
    this.sender.disabled = this.reading > 0;
  }

  /** @param {Picture[]} pictures */
  put(pictures) {
    this.pictures = pictures;
    this.show();
  }

  /** Hands them over. */
  take() {
    const taken = this.pictures;
    this.pictures = [];
    note(this.place, '');
    this.show();
    return taken;
  }

  show() {
    const all = el('button', { type: 'button', onclick: () => this.clear() }, 'Remove all');
    this.list.replaceChildren(
      ...this.pictures.map((picture, at) =>
        el(
          'li',
          {},
          shown(picture, false),
          el('button', { type: 'button', 'aria-label': `Remove ${picture.name}`, onclick: () => this.remove(at) }, '×'),
        ),
      ),
      ...(this.pictures.length >= MANY ? [el('li', { className: 'all' }, all)] : []),
    );
  }

  clear() {
    this.take();
    this.back.focus();
  }

  /** @param {number} at */
  remove(at) {
    this.pictures.splice(at, 1);
    note(this.place, this.check());
    this.show();
    const next = this.list.querySelectorAll('button')[Math.min(at, this.pictures.length - 1)];
    (next ?? this.back).focus();
  }
}

/** A red circle and a blue square, for those who have no picture at hand. @returns {Promise<File>} */
export async function drawnPicture() {
  const canvas = el('canvas', { width: 224, height: 224 });
  const brush = canvas.getContext('2d');
  brush.fillStyle = 'white';
  brush.fillRect(0, 0, 224, 224);
  brush.fillStyle = '#e02020';
  brush.beginPath();
  brush.arc(62, 112, 42, 0, 2 * Math.PI);
  brush.fill();
  brush.fillStyle = '#2050e0';
  brush.fillRect(124, 72, 80, 80);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
  return new File([blob], 'red circle, blue square.png', { type: 'image/png' });
}
