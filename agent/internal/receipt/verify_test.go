package receipt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// signer is a key with its private half, for tests.
type signer struct {
	private ed25519.PrivateKey
	id, pem string
}

func newSigner(t *testing.T, seed byte) signer {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	require.NoError(t, err)
	return signer{private, wire.Digest(der), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

func (s signer) keys(t *testing.T) []Key {
	t.Helper()
	keys, err := Keys([]byte(s.pem))
	require.NoError(t, err)
	require.Equal(t, s.id, keys[0].ID)
	return keys
}

// sign makes one entry of an envelope's signatures, by the text of DSSE and not by
// the library.
func (s signer) sign(payloadType string, payload []byte) string {
	message := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	signature := base64.StdEncoding.EncodeToString(ed25519.Sign(s.private, []byte(message)))
	return fmt.Sprintf(`{"keyid":%q,"sig":%q}`, s.id, signature)
}

func envelope(payloadType string, payload []byte, signatures ...string) string {
	return fmt.Sprintf(`{"payloadType":%q,"payload":%q,"signatures":[%s]}`,
		payloadType, base64.StdEncoding.EncodeToString(payload), strings.Join(signatures, ","))
}

// golden is what the plugin makes, and the key of its test.
func golden(t *testing.T) (statement, text []byte, key signer) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "..", "plugin", "testdata", "receipt.golden"))
	require.NoError(t, err)
	lines := bytes.Split(content, []byte("\n"))
	require.Len(t, lines, 3)
	return lines[0], lines[1], newSigner(t, 7)
}

func refused(t *testing.T, content []byte, keys []Key) wire.Error {
	t.Helper()
	_, err := Verify(t.Context(), content, keys)
	require.Error(t, err)
	var known *wire.Error
	require.ErrorAs(t, err, &known)
	require.Equal(t, wire.CodeReceiptInvalid, known.Code)
	return *known
}

// A receipt of the plugin verifies with the public key, also among others, and
// says what was signed. So does one that another program has indented.
func TestVerify_Golden(t *testing.T) {
	t.Parallel()
	_, text, key := golden(t)
	bundle := newSigner(t, 1).pem + "a comment\n" + key.pem + key.pem
	keys, err := Keys([]byte(bundle))
	require.NoError(t, err)
	require.Len(t, keys, 2)
	var indented bytes.Buffer
	require.NoError(t, json.Indent(&indented, text, "", "  "))
	for _, content := range [][]byte{text, append(slices.Clone(text), '\n'), indented.Bytes()} {
		verified, err := Verify(t.Context(), content, keys)
		require.NoError(t, err)
		require.Equal(t, key.id, verified.KeyID)
		require.Equal(t, "op-01kaysfqcv4d5nvsxgtv1fbkgs", verified.Attested.Request.OperationID)
		require.Equal(t, "1152921504606846976", verified.Attested.Decision.Obligations["max_rows"])
		require.Equal(t, "none", verified.ReportedByAgent.Sandbox.Container.Network)
		require.Len(t, verified.Subjects, 3)
	}
}

// One byte changed anywhere in the payload, in the signature or in the file, and the
// receipt does not verify.
func TestVerify_OneByteChanged(t *testing.T) {
	t.Parallel()
	payload, text, key := golden(t)
	keys := key.keys(t)
	signature := key.sign(wire.ReceiptPayloadType, payload)
	require.Equal(t, string(text), envelope(wire.ReceiptPayloadType, payload, signature), "the library signs what DSSE says")

	for i := 0; i < len(payload); i += race.Stride {
		for _, flip := range []byte{0x01, 0x80} {
			changed := slices.Clone(payload)
			changed[i] ^= flip
			refused(t, []byte(envelope(wire.ReceiptPayloadType, changed, signature)), keys)
		}
	}
	var parsed struct{ Sig []byte }
	require.NoError(t, json.Unmarshal([]byte(signature), &parsed))
	require.Len(t, parsed.Sig, ed25519.SignatureSize)
	for i := range parsed.Sig {
		for bit := range 8 {
			changed := slices.Clone(parsed.Sig)
			changed[i] ^= 1 << bit
			entry := fmt.Sprintf(`{"keyid":%q,"sig":%q}`, key.id, base64.StdEncoding.EncodeToString(changed))
			refused(t, []byte(envelope(wire.ReceiptPayloadType, payload, entry)), keys)
		}
	}
	for i := 0; i < len(text); i += race.Stride {
		changed := slices.Clone(text)
		changed[i] ^= 1 << (i % 8)
		refused(t, changed, keys)
	}
	for cut := 0; cut < len(text); cut += 97 * race.Stride {
		refused(t, text[:cut], keys)
	}
}

// What is not exactly a receipt is refused with the reason, however well it is
// signed.
func TestVerify_Refusals(t *testing.T) {
	t.Parallel()
	payload, text, key := golden(t)
	keys, other := key.keys(t), newSigner(t, 9)
	const kind = wire.ReceiptPayloadType
	ours := key.sign(kind, payload)
	signed := func(payload string) string { return envelope(kind, []byte(payload), key.sign(kind, []byte(payload))) }
	for name, test := range map[string]struct{ content, reason string }{
		"unknown key":               {envelope(kind, payload, other.sign(kind, payload)), other.id},
		"two signatures, none ours": {envelope(kind, payload, other.sign(kind, payload), newSigner(t, 8).sign(kind, payload)), "none of the keys"},
		"our id, another key":       {envelope(kind, payload, strings.Replace(other.sign(kind, payload), other.id, key.id, 1)), "altered"},
		"no id, another key":        {envelope(kind, payload, strings.Replace(other.sign(kind, payload), other.id, "", 1)), "none of the keys"},
		"no signature":              {envelope(kind, payload), "not signed"},
		"wrong payload type":        {envelope("application/json", payload, key.sign("application/json", payload)), "payload's type"},
		"payload type not signed":   {envelope(kind, payload, key.sign("application/json", payload)), "altered"},
		"trailing bytes":            {string(text) + "x", "follows"},
		"a second envelope":         {string(text) + string(text), "follows"},
		"unknown field":             {strings.Replace(string(text), `{"payloadType"`, `{"x":1,"payloadType"`, 1), "not written as"},
		"doubled field":             {strings.Replace(string(text), `{"payloadType"`, `{"payload":"","payloadType"`, 1), "not written as"},
		"misspelt field":            {strings.Replace(string(text), `"payload":`, `"Payload":`, 1), "not written as"},
		"escaped":                   {strings.Replace(string(text), `"payload":`, `"\u0070ayload":`, 1), "not written as"},
		"newline in base64":         {strings.Replace(string(text), `"payload":"`, `"payload":"\n`, 1), "base64"},
		"base64 for URLs":           {strings.Replace(envelope(kind, payload, ours), `"sig":"`, `"sig":"-_`, 1), "base64"},
		"not JSON":                  {"PK\x03\x04", "not a DSSE envelope"},
		"nothing":                   {"", "not a DSSE envelope"},
		"a list":                    {"[]", "not a DSSE envelope"},
		"not a statement":           {signed(`{"_type":"x"}`), "not a statement"},
		"another predicate":         {signed(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1"}`), "not a receipt"},
		"no operation":              {signed(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"` + wire.ReceiptPredicateType + `"}`), "no operation"},
		"signed text":               {signed(`hello`), "not an in-toto statement"},
		"signed statement and more": {signed(string(payload) + "{}"), "not an in-toto statement"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NotEqual(t, string(text), test.content)
			require.Contains(t, refused(t, []byte(test.content), keys).Reason, test.reason)
		})
	}
	// Somebody else may sign beside us.
	for _, signatures := range [][]string{{ours, other.sign(kind, payload)}, {other.sign(kind, payload), ours}} {
		verified, err := Verify(t.Context(), []byte(envelope(kind, payload, signatures...)), keys)
		require.NoError(t, err)
		require.Equal(t, key.id, verified.KeyID)
	}
}

// A file of keys holds ed25519 public keys and nothing else.
func TestKeys_Refusals(t *testing.T) {
	t.Parallel()
	key := newSigner(t, 7)
	private, err := x509.MarshalPKCS8PrivateKey(key.private)
	require.NoError(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	foreign, err := x509.MarshalPKIXPublicKey(ec.Public())
	require.NoError(t, err)
	block := func(kind string, content []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}))
	}
	for name, test := range map[string]struct{ content, reason string }{
		"empty":        {"", "no public key"},
		"text":         {key.id, "no public key"},
		"private key":  {key.pem + block("PRIVATE KEY", private), "not a PUBLIC KEY"},
		"damaged":      {key.pem + strings.Replace(key.pem, "-----END", "----END", 1), "damaged"},
		"not a key":    {block("PUBLIC KEY", []byte("x")), "cannot be read"},
		"another kind": {block("PUBLIC KEY", foreign), "not an ed25519"},
	} {
		_, err := Keys([]byte(test.content))
		require.ErrorContains(t, err, test.reason, name)
		require.NotContains(t, err.Error(), "PRIVATE KEY-----", name)
	}
}

// No file makes the verifier panic, and none but a signed one verifies.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"","sig":"AA=="}]}`))
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":null}`))
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
	public, ok := private.Public().(ed25519.PublicKey)
	if !ok {
		f.Fatal("not an ed25519 key")
	}
	keys := []Key{{ID: "k", public: public}}
	f.Fuzz(func(t *testing.T, content []byte) {
		if _, err := Verify(t.Context(), content, keys); err == nil {
			t.Fatalf("%q verifies", content)
		}
	})
}
