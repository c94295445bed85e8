package plugin

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// countingReads counts the bytes that are read of texts.
type countingReads struct {
	logical.Storage
	bytes atomic.Int64
}

func (c *countingReads) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	entry, err := c.Storage.Get(ctx, key)
	if entry != nil && !strings.HasSuffix(key, "/head") {
		c.bytes.Add(int64(len(entry.Value)))
	}
	return entry, err
}

// longText is one that compresses to about half.
func longText(bytes int) string {
	raw := make([]byte, bytes/2)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(raw)
	return hex.EncodeToString(raw)
}

// planOf stores a text as the plan of a new operation.
func (m *desk) planOf(text string) (id string) {
	m.t.Helper()
	id = m.clone().ID
	require.NoError(m.t, putText(m.t.Context(), m.storage, prefixPlan+id+"/", "1", text))
	return id
}

// readPlanOf reads all parts, as a client does, and checks the digest.
func (m *desk) readPlanOf(id string) string {
	m.t.Helper()
	var whole strings.Builder
	for n, parts := 0, 1; n < parts; n++ {
		data := m.must(m.read(alice, "operations/"+id+"/plan", "part", strconv.Itoa(n)))
		var err error
		parts, err = strconv.Atoi(data["parts"].(string))
		require.NoError(m.t, err)
		whole.WriteString(data["text"].(string))
		if n == parts-1 {
			require.Equal(m.t, wire.Digest([]byte(whole.String())), data["plan_digest"])
		}
	}
	return whole.String()
}

// Reading a text part by part costs about as much as the text is long, not that
// times its parts.
func TestText_PartsAreReadAlone(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	text := longText(12 << 20)
	id := m.planOf(text)
	reads := &countingReads{Storage: m.storage}
	m.storage = reads
	require.Equal(t, text, m.readPlanOf(id))
	require.Less(t, reads.bytes.Load(), int64(4*len(text)))
	resp, err := m.read(alice, "operations/"+id+"/plan", "part", "48")
	require.Equal(t, "part", m.refused(wire.CodeInvalid, resp, err).Field)
}

// Texts of any length come back as they were, also those of versions that stored them
// in one piece; what was altered in storage is an error.
func TestText_RoundTrip(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for _, text := range []string{"", "x", strings.Repeat("é", wire.PlanPartBytes), longText(wire.PlanPartBytes), longText(2*wire.PlanPartBytes + 1), longText(3 << 20)} {
		id := m.planOf(text)
		require.Equal(t, text, m.readPlanOf(id))
		whole, err := getText(t.Context(), m.storage, prefixPlan+id+"/")
		require.NoError(t, err)
		require.Equal(t, text, *whole)
	}

	text := longText(2 << 20)
	id := m.clone().ID
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	packed := encoder.EncodeAll([]byte(text), nil)
	head := textHead{Digest: wire.Digest([]byte(text)), Bytes: len(text), Name: "1"}
	for start := 0; start < len(packed); start += storedChunkBytes {
		key := prefixPlan + id + "/1-" + strconv.Itoa(head.Chunks)
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: packed[start:min(len(packed), start+storedChunkBytes)]}))
		head.Chunks++
	}
	require.NoError(t, putStored(t.Context(), m.storage, prefixPlan+id+"/head", head))
	require.Equal(t, text, m.readPlanOf(id), "of an earlier version")

	id = m.planOf(text)
	entry, err := m.storage.Get(t.Context(), prefixPlan+id+"/1-0")
	require.NoError(t, err)
	entry.Value[1000] ^= 1
	require.NoError(t, m.storage.Put(t.Context(), entry))
	_, err = m.read(alice, "operations/"+id+"/plan", "part", "0")
	require.Error(t, err)
}

// BenchmarkText_ReadParts reads plans part by part, as they are stored now and as
// earlier versions stored them, in one piece.
func BenchmarkText_ReadParts(b *testing.B) {
	for _, size := range []int{12 << 20, 48 << 20} {
		text := longText(size)
		for _, earlier := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dMiB/earlier=%t", size>>20, earlier), func(b *testing.B) {
				s := &logical.InmemStorage{}
				require.NoError(b, putText(b.Context(), s, "p/", "1", text))
				head, err := getStored[textHead](b.Context(), s, "p/head")
				require.NoError(b, err)
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					for n := range head.Parts {
						if earlier {
							_, err = head.whole(b.Context(), s, "p/")
						} else {
							_, err = head.part(b.Context(), s, "p/", n)
						}
						require.NoError(b, err)
					}
				}
			})
		}
	}
}
