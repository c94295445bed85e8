package plugin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
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
	// Parts are what [splitText] makes of the text, each compressed by itself, so that
	// one is read without the others. Texts of earlier versions have none.
	Parts []textPart `json:"parts,omitempty"`
}

// textPart is one part: where it ends among the bytes of all chunks, and its digest.
type textPart struct {
	End    int    `json:"end"`
	Digest string `json:"digest"`
}

// putText stores text below prefix (which ends with a slash) in chunks, the head
// last. Name must differ between texts that may be written for the same prefix, so
// that a crash never leaves a head with somebody else's chunks.
func putText(ctx context.Context, s logical.Storage, prefix, name, text string) error {
	head, err := putChunks(ctx, s, prefix, name, text)
	if err != nil {
		return err
	}
	return putStored(ctx, s, prefix+"head", head)
}

// putChunks stores the chunks of a text and returns the head that is still to be
// stored.
func putChunks(ctx context.Context, s logical.Storage, prefix, name, text string) (textHead, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return textHead{}, fmt.Errorf("compress %s: %w", prefix, err)
	}
	head := textHead{Digest: wire.Digest([]byte(text)), Bytes: len(text), Name: name}
	var packed []byte
	for _, part := range splitText(text) {
		packed = encoder.EncodeAll([]byte(part), packed)
		head.Parts = append(head.Parts, textPart{End: len(packed), Digest: wire.Digest([]byte(part))})
	}
	if err := encoder.Close(); err != nil {
		return textHead{}, fmt.Errorf("compress %s: %w", prefix, err)
	}
	for start := 0; start == 0 || start < len(packed); start += storedChunkBytes {
		chunk := packed[start:min(len(packed), start+storedChunkBytes)]
		key := prefix + name + "-" + strconv.Itoa(head.Chunks)
		if err := s.Put(ctx, &logical.StorageEntry{Key: key, Value: chunk}); err != nil {
			return textHead{}, fmt.Errorf("store %s: %w", key, err)
		}
		head.Chunks++
	}
	return head, nil
}

// draftText is a text whose chunks are stored and whose head is not, so that nobody
// sees it. The long writing needs no lock that way: only who publishes it, with one
// short write, has to have the right to under the lock of whose text it is.
type draftText struct {
	prefix    string
	head      textHead
	published bool // or perhaps: that was tried
}

// draft stores the chunks of a text below prefix, under a name that no other text has,
// not even one by the same claim at the same time. When it fails nothing is left; else
// the caller has to [draftText.settle] it.
func draft(ctx context.Context, s logical.Storage, prefix, fence, text string) (*draftText, error) {
	d := &draftText{prefix: prefix}
	name := fence + "-" + rand.Text()
	var err error
	if d.head, err = putChunks(ctx, s, prefix, name, text); err != nil {
		d.head.Name = name
		return nil, errors.Join(err, d.settle(ctx, s, false))
	}
	return d, nil
}

// publish makes it the text of its prefix.
func (d *draftText) publish(ctx context.Context, s logical.Storage) error {
	d.published = true
	return putStored(ctx, s, d.prefix+"head", d.head)
}

// settle removes what nobody will read: a draft that was not published, or, when it was
// and that is recorded, what a crash left of others: none of them may be published any
// more. In between its head may be there or not, and all chunks stay. A client that has
// gone does not hinder it.
func (d *draftText) settle(ctx context.Context, s logical.Storage, recorded bool) error {
	mine := d.head.Name + "-"
	unread := func(name string) bool { return strings.HasPrefix(name, mine) }
	switch {
	case recorded:
		unread = func(name string) bool { return name != "head" && !strings.HasPrefix(name, mine) }
	case d.published:
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	names, err := listStored(ctx, s, d.prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !unread(name) {
			continue
		}
		if err := deleteStored(ctx, s, d.prefix+name); err != nil {
			return err
		}
	}
	return nil
}

// settleTimeout bounds the removal of chunks.
const settleTimeout = 30 * time.Second

// getText reads what putText stored. It returns nil without an error when there
// is none, and an error when the bytes are not those that were stored.
func getText(ctx context.Context, s logical.Storage, prefix string) (*string, error) {
	head, err := getStored[textHead](ctx, s, prefix+"head")
	if err != nil || head == nil {
		return nil, err
	}
	return head.whole(ctx, s, prefix)
}

// whole reads the text.
func (h *textHead) whole(ctx context.Context, s logical.Storage, prefix string) (*string, error) {
	packed, err := h.chunks(ctx, s, prefix, 0, h.Chunks)
	if err != nil {
		return nil, err
	}
	content, err := unpack(prefix, packed, 2*wire.PlanMaxBytes, h.Digest)
	if err != nil {
		return nil, err
	}
	text := string(content)
	return &text, nil
}

// part reads one of its parts.
func (h *textHead) part(ctx context.Context, s logical.Storage, prefix string, n int) (string, error) {
	start, end := 0, h.Parts[n].End
	if n > 0 {
		start = h.Parts[n-1].End
	}
	first := start / storedChunkBytes
	packed, err := h.chunks(ctx, s, prefix, first, (end+storedChunkBytes-1)/storedChunkBytes)
	if err != nil {
		return "", err
	}
	skipped := first * storedChunkBytes
	if start < skipped || end-skipped > len(packed) || start > end {
		return "", fmt.Errorf("read %s: part %d is not where its head says", prefix, n)
	}
	content, err := unpack(prefix, packed[start-skipped:end-skipped], 2*wire.PlanPartBytes, h.Parts[n].Digest)
	return string(content), err
}

// chunks reads those from first on, before end.
func (h *textHead) chunks(ctx context.Context, s logical.Storage, prefix string, first, end int) ([]byte, error) {
	var packed []byte
	for n := first; n < end; n++ {
		key := prefix + h.Name + "-" + strconv.Itoa(n)
		entry, err := s.Get(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		if entry == nil {
			return nil, fmt.Errorf("read %s: chunk is missing", key)
		}
		packed = append(packed, entry.Value...)
	}
	return packed, nil
}

// unpack decompresses at most limit bytes, which have to have the digest.
func unpack(prefix string, packed []byte, limit uint64, digest string) ([]byte, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(limit))
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", prefix, err)
	}
	defer decoder.Close()
	content, err := decoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", prefix, err)
	}
	if wire.Digest(content) != digest {
		return nil, fmt.Errorf("read %s: the stored text does not have its digest", prefix)
	}
	return content, nil
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
