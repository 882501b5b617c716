/** As much of the protocol buffers' wire format as finding fields takes. Nothing is copied. */

/**
 * The fields of one message.
 *
 * @param {Uint8Array} bytes the message
 * @yields {{number: number, type: number, value: number|Uint8Array, start: number}} `value` is a view into
 *   `bytes` of a length-delimited field (type 2), the number of a varint (0), the bytes of the fixed types
 *   (1, 5); `start` is the offset of the field's tag.
 * @throws {RangeError} the bytes are no message
 */
export function* fields(bytes) {
  let at = 0;
  while (at < bytes.length) {
    const start = at;
    const tag = varint();
    const [number, type] = [Math.floor(tag / 8), tag % 8];
    if (number < 1) throw new RangeError(`field ${number}`);
    if (type === 0) yield { number, type, value: varint(), start };
    else if (type === 2) yield { number, type, value: take(varint()), start };
    else if (type === 1 || type === 5) yield { number, type, value: take(type === 1 ? 8 : 4), start };
    else throw new RangeError(`wire type ${type}`);
  }

  function varint() {
    let value = 0;
    for (let factor = 1; factor <= 2 ** 63; factor *= 128) {
      if (at >= bytes.length) throw new RangeError("cut short");
      const byte = bytes[at++];
      value += (byte & 127) * factor; // lengths fit in 53 bits; negative numbers are nowhere looked at
      if (byte < 128) return value;
    }
    throw new RangeError("a number too long");
  }

  function take(length) {
    if (at + length > bytes.length) throw new RangeError("cut short");
    return bytes.subarray(at, (at += length));
  }
}

/** The last field of that number, as protocol buffers read a field that is set twice; undefined if unset. */
export function field(bytes, number) {
  let found;
  for (const one of fields(bytes)) if (one.number === number) found = one.value;
  return found;
}

/** A string field; "" if unset. */
export function text(bytes, number) {
  return new TextDecoder().decode(field(bytes, number) ?? new Uint8Array());
}
