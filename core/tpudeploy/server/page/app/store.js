/** Conversations in the browser's IndexedDB. Where that is switched off, they live as long as the page does. */
const DATABASE = "tpudeploy";
const TABLE = "conversations";

export class Store {
  #database = null;

  /** Open the database; false where the browser keeps nothing. */
  async open() {
    try {
      const opening = indexedDB.open(DATABASE, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      this.#database = await finished(opening);
      this.#database.onversionchange = () => this.#database.close();
      return true;
    } catch {
      return false;
    }
  }

  async all() {
    if (!this.#database) return [];
    return finished(this.#database.transaction(TABLE).objectStore(TABLE).getAll());
  }

  async get(id) {
    if (!this.#database) return undefined;
    return finished(this.#database.transaction(TABLE).objectStore(TABLE).get(id));
  }

  /** Write a conversation. Throws a DOMException (QuotaExceededError where the disk's share is used up). */
  async put(conversation) {
    await this.#write((table) => table.put(conversation));
  }

  async remove(id) {
    await this.#write((table) => table.delete(id));
  }

  async #write(change) {
    if (!this.#database) return;
    const transaction = this.#database.transaction(TABLE, "readwrite");
    change(transaction.objectStore(TABLE));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      // A full disk aborts the transaction as it commits: the request itself has succeeded by then.
      transaction.onabort = () => reject(transaction.error ?? new DOMException("", "AbortError"));
    });
  }
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new DOMException("", "AbortError"));
  });
}
