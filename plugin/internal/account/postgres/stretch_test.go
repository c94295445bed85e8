package postgres

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"hash"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The exchange printed in RFC 7677, section 3, with its password: the verifier must
// let that client in and sign as that server does.
func TestSCRAMVerifier_RFC7677(t *testing.T) {
	t.Parallel()
	decode := func(text string) []byte {
		content, err := base64.StdEncoding.DecodeString(text)
		require.NoError(t, err)
		return content
	}
	const (
		salt     = "W22ZaJ0SNY7soEsUEjb6gQ=="
		messages = "n=user,r=rOprNGfwEbeRWgbNEkqO," +
			"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=" + salt + ",i=4096," +
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		proof     = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		signature = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	verifier, err := scramVerifierWith("pencil", decode(salt), 4096)
	require.NoError(t, err)
	keys, found := strings.CutPrefix(verifier, "SCRAM-SHA-256$4096:"+salt+"$")
	require.True(t, found, verifier)
	stored, server, found := strings.Cut(keys, ":")
	require.True(t, found, verifier)

	sign := func(key []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(messages))
		return h.Sum(nil)
	}
	client := decode(proof)
	subtle.XORBytes(client, client, sign(decode(stored)))
	hashed := sha256.Sum256(client)
	require.Equal(t, stored, base64.StdEncoding.EncodeToString(hashed[:]))
	require.Equal(t, signature, base64.StdEncoding.EncodeToString(sign(decode(server))))
}

// The time is saved with the Go that builds this: its hashes show their state as we
// know it. When this fails stretch is right, but slow.
func TestStretch_ByState(t *testing.T) {
	t.Parallel()
	for _, iterations := range []int{1, 2, 3, 4096} {
		_, ok := stretchByState(sha256.New(), "password", []byte("salt"), iterations)
		require.True(t, ok)
	}
}

// otherState marshals its state in reverse, as no Go does.
type otherState struct{ resumable }

func (o otherState) AppendBinary(b []byte) ([]byte, error) {
	state, err := o.resumable.AppendBinary(nil)
	slices.Reverse(state)
	return append(b, state...), err
}

func (o otherState) UnmarshalBinary(state []byte) error {
	state = slices.Clone(state)
	slices.Reverse(state)
	return o.resumable.UnmarshalBinary(state)
}

// A hash whose state looks otherwise, or cannot be had, is found out.
func TestStretch_UnknownState(t *testing.T) {
	t.Parallel()
	known, ok := sha256.New().(resumable)
	require.True(t, ok)
	for _, h := range []hash.Hash{otherState{known}, struct{ hash.Hash }{known}} {
		_, ok := stretchByState(h, "password", []byte("salt"), 4096)
		require.False(t, ok)
	}
}

func FuzzStretch(f *testing.F) {
	f.Add("pencil", []byte("salt"), uint16(1))
	f.Add("", []byte{}, uint16(2))
	f.Add(strings.Repeat("p", sha256.BlockSize), bytes.Repeat([]byte("s"), 100), uint16(3))
	f.Add(strings.Repeat("p", sha256.BlockSize+1), []byte("salt"), uint16(4096))
	f.Fuzz(func(t *testing.T, password string, salt []byte, iterations uint16) {
		iterations = max(iterations%5000, 1)
		want, err := pbkdf2.Key(sha256.New, password, salt, int(iterations), sha256.Size)
		require.NoError(t, err)
		got, err := stretch(password, salt, int(iterations))
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func BenchmarkSCRAMVerifier(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := scramVerifierOf("A1a-0123456789abcdefghijklmnopqr", scramIterations); err != nil {
			b.Fatal(err)
		}
	}
}
