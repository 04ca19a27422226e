/** Follows a growing answer while its reader is at the end, and leaves readers who scrolled up where they are. */

/** This close to the end counts as at the end, in CSS pixels. */
const NEAR = 32;

export class Follower {
  #follows = true;
  #last = 0;

  /** `scroller` scrolls its children; `button` leads back to the end and is shown while the reader is elsewhere. */
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    const observer = new ResizeObserver(() => this.#resized());
    for (const element of [scroller, ...scroller.children]) observer.observe(element);
  }

  toEnd() {
    this.#follows = true;
    this.#resized();
  }

  #distance() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop;
  }

  #scrolled() {
    const top = this.scroller.scrollTop;
    if (this.#distance() <= NEAR) this.#follows = true;
    else if (top < this.#last) this.#follows = false;
    this.#last = top;
    this.button.hidden = this.#distance() <= NEAR;
  }

  #resized() {
    if (this.#follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#last = this.scroller.scrollTop;
    this.button.hidden = this.#distance() <= NEAR;
  }
}
