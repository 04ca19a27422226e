/** Server-sent events, as far as the OpenAI format uses them: `data:` lines, events ended by an empty line. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Take the next piece of the stream, cut anywhere; return the data of the events that it completed. */
  feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}
