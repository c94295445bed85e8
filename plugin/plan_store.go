package plugin

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/klauspost/compress/zstd"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// storedChunkBytes is the most one storage entry holds of a compressed text. Raft
// refuses entries above 1 MiB, and bytes travel as base64 in some of them.
const storedChunkBytes = 512 << 10

// textHead says where the chunks of a stored text are. It is written after them:
// a text without a head does not exist.
type textHead struct {
	Digest string `json:"digest"`
	Bytes  int    `json:"bytes"` // uncompressed
	Chunks int    `json:"chunks"`
	Name   string `json:"name"` // of the chunks: <name>-<n>
}

// putText stores text below prefix (which ends with a slash) in chunks, the head
// last. Name must differ between texts that may be written for the same prefix, so
// that a crash never leaves a head with somebody else's chunks.
func putText(ctx context.Context, s logical.Storage, prefix, name, text string) error {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("compress %s: %w", prefix, err)
	}
	packed := encoder.EncodeAll([]byte(text), nil)
	if err := encoder.Close(); err != nil {
		return fmt.Errorf("compress %s: %w", prefix, err)
	}
	head := textHead{Digest: wire.Digest([]byte(text)), Bytes: len(text), Name: name}
	for start := 0; start == 0 || start < len(packed); start += storedChunkBytes {
		chunk := packed[start:min(len(packed), start+storedChunkBytes)]
		key := prefix + name + "-" + strconv.Itoa(head.Chunks)
		if err := s.Put(ctx, &logical.StorageEntry{Key: key, Value: chunk}); err != nil {
			return fmt.Errorf("store %s: %w", key, err)
		}
		head.Chunks++
	}
	return putStored(ctx, s, prefix+"head", head)
}

// getText reads what putText stored. It returns nil without an error when there
// is none, and an error when the bytes are not those that were stored.
func getText(ctx context.Context, s logical.Storage, prefix string) (*string, error) {
	head, err := getStored[textHead](ctx, s, prefix+"head")
	if err != nil || head == nil {
		return nil, err
	}
	var packed []byte
	for n := range head.Chunks {
		key := prefix + head.Name + "-" + strconv.Itoa(n)
		entry, err := s.Get(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		if entry == nil {
			return nil, fmt.Errorf("read %s: chunk is missing", key)
		}
		packed = append(packed, entry.Value...)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*wire.PlanMaxBytes))
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", prefix, err)
	}
	defer decoder.Close()
	content, err := decoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", prefix, err)
	}
	if wire.Digest(content) != head.Digest {
		return nil, fmt.Errorf("read %s: the stored text does not have its digest", prefix)
	}
	text := string(content)
	return &text, nil
}

// splitText cuts text into parts of at most wire.PlanPartBytes, between
// characters. There is always at least one.
func splitText(text string) []string {
	var parts []string
	for len(text) > wire.PlanPartBytes {
		cut := wire.PlanPartBytes
		for cut > wire.PlanPartBytes-utf8.UTFMax && !utf8.RuneStart(text[cut]) {
			cut--
		}
		parts, text = append(parts, text[:cut]), text[cut:]
	}
	return append(parts, text)
}

// maxTextParts bounds what one text in transit may be cut into.
const maxTextParts = 4096

// textParts is a text that arrives in parts, kept in memory until it is whole.
type textParts struct {
	fence string
	mu    sync.Mutex // parts may come at the same time, one of them twice
	parts []*string
	have  int
	bytes int
}

// begun tells whether any part of it has arrived.
func (t *textParts) begun() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.have > 0
}

// add takes one part and returns the whole text when it is complete. Repeated
// parts are accepted when they are equal.
func (t *textParts) add(part int, text string) (whole string, complete bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.parts[part]; known != nil {
		if sha256.Sum256([]byte(*known)) != sha256.Sum256([]byte(text)) {
			return "", false, &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("part %d was sent before with other content", part),
				Hint: "send the whole text again from part 0",
			}
		}
	} else {
		t.bytes += len(text)
		t.have++
		t.parts[part] = &text
	}
	if t.bytes > wire.PlanMaxBytes {
		return "", false, &wire.Error{
			Code: wire.CodePlanTooLarge, Reason: fmt.Sprintf("the text is larger than %d bytes", wire.PlanMaxBytes),
		}
	}
	if t.have < len(t.parts) {
		if part == len(t.parts)-1 {
			return "", false, &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("%d of %d parts have not arrived", len(t.parts)-t.have, len(t.parts)),
				Hint: "send the whole text again from part 0",
			}
		}
		return "", false, nil
	}
	var b strings.Builder
	b.Grow(t.bytes)
	for _, p := range t.parts {
		b.WriteString(*p)
	}
	return b.String(), true, nil
}
