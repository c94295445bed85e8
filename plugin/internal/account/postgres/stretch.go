package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding"
	"encoding/binary"
	"hash"
)

// stretch is PBKDF2 with HMAC-SHA-256 and a key of one hash, in about 0.7 of the
// processor time of crypto/pbkdf2: thousands of iterations are the largest part
// of what a login costs the plugin.
func stretch(password string, salt []byte, iterations int) ([]byte, error) {
	if key, ok := stretchByState(sha256.New(), password, salt, iterations); ok {
		return key, nil
	}
	return pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
}

// resumable is a hash that can go on from a stored state.
type resumable interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// stretchByState saves what crypto/pbkdf2 repeats. An iteration hashes two messages
// of a padded password, 64 bytes that never change, and 32 bytes that do. The
// states after the padded password are stored, as crypto/hmac does, too. What
// follows is exactly one block with SHA-256's own padding, so the state after it is
// the hash already, and Sum, which copies the state and pads it, is not needed.
//
// Where a marshaled state has the hash is the Go project's own business. So the
// first iteration is compared with crypto/hmac's; ok is false when they differ.
func stretchByState(h hash.Hash, password string, salt []byte, iterations int) (key []byte, ok bool) {
	r, ok := h.(resumable)
	if !ok {
		return nil, false
	}
	var starts [2][]byte
	for i, pad := range []byte{0x36, 0x5c} { // HMAC's inner and outer hash
		var err error
		if starts[i], err = startOf(r, password, pad); err != nil {
			return nil, false
		}
	}

	mac := hmac.New(sha256.New, []byte(password))
	mac.Write(salt)
	mac.Write([]byte{0, 0, 0, 1}) // which hash of the key it is
	key = mac.Sum(nil)

	var block [sha256.BlockSize]byte
	changing := block[:copy(block[:], key)]
	block[len(changing)] = 0x80
	binary.BigEndian.PutUint64(block[len(block)-8:], 8*(sha256.BlockSize+sha256.Size)) // bits of the message
	var state []byte
	for iteration := 1; iteration < iterations; iteration++ {
		for _, start := range starts {
			if err := r.UnmarshalBinary(start); err != nil {
				return nil, false
			}
			r.Write(block[:])
			var err error
			if state, err = r.AppendBinary(state[:0]); err != nil || len(state) < stateHash+sha256.Size {
				return nil, false
			}
			copy(changing, state[stateHash:])
		}
		if iteration == 1 {
			mac.Reset()
			mac.Write(key)
			if !hmac.Equal(mac.Sum(nil), changing) {
				return nil, false
			}
		}
		subtle.XORBytes(key, key, changing)
	}
	return key, true
}

// stateHash is where a marshaled state has the hash, behind four bytes that name
// its kind.
const stateHash = 4

// startOf is the state of h after the password as HMAC pads it.
func startOf(h resumable, password string, pad byte) ([]byte, error) {
	var padded [sha256.BlockSize]byte
	if len(password) > len(padded) {
		short := sha256.Sum256([]byte(password))
		copy(padded[:], short[:])
	} else {
		copy(padded[:], password)
	}
	for i := range padded {
		padded[i] ^= pad
	}
	h.Reset()
	h.Write(padded[:])
	return h.AppendBinary(nil)
}
