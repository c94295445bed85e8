package receipt

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Key is a public key that receipts may be signed with.
type Key struct {
	ID     string // digest of its DER form
	public ed25519.PublicKey
}

var _ dsse.Verifier = Key{}

// Verify reports whether sig is the key's over data.
func (k Key) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(k.public, data, sig) {
		return errors.New("the signature is not the key's")
	}
	return nil
}

// KeyID is the key's id.
func (k Key) KeyID() (string, error) { return k.ID, nil }

// Public is the key itself.
func (k Key) Public() crypto.PublicKey { return k.public }

// Keys reads the PEM blocks of a file, as keys/ answers them in its field pem.
// Every block must be an ed25519 public key, and there must be one.
func Keys(content []byte) ([]Key, error) {
	var keys []Key
	known := map[string]bool{}
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, badKeys("a PEM block is damaged")
			}
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, badKeys(fmt.Sprintf("a PEM block is a %q, not a PUBLIC KEY", block.Type))
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, badKeys("a public key cannot be read")
		}
		public, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, badKeys("a public key is not an ed25519 one")
		}
		key := Key{ID: wire.Digest(block.Bytes), public: public}
		if !known[key.ID] {
			known[key.ID] = true
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, badKeys("it holds no public key")
	}
	return keys, nil
}

func badKeys(reason string) *wire.Error {
	return &wire.Error{Code: wire.CodeUsage, Field: "keys", Reason: "the file of keys is none: " + reason, Hint: "vault read -field=pem dbops/keys"}
}

// Verified is what a receipt says, and whose word it is.
type Verified struct {
	KeyID    string
	Subjects []Subject
	wire.Receipt
}

// Subject is one thing a receipt is about.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// statement is the payload.
type statement struct {
	Type          string       `json:"_type"`
	Subject       []Subject    `json:"subject"`
	PredicateType string       `json:"predicateType"`
	Predicate     wire.Receipt `json:"predicate"`
}

const statementType = "https://in-toto.io/Statement/v1"

// Verify checks a receipt. What is wrong is a *wire.Error of CodeReceiptInvalid.
// A signature of somebody else beside ours does no harm; at least one must be of
// one of the keys.
func Verify(ctx context.Context, content []byte, keys []Key) (Verified, error) {
	envelope, err := readEnvelope(content)
	if err != nil {
		return Verified{}, err
	}
	verifiers := make([]dsse.Verifier, len(keys))
	for i, key := range keys {
		verifiers[i] = key
	}
	verifier, err := dsse.NewEnvelopeVerifier(verifiers...)
	if err != nil {
		return Verified{}, badKeys("it holds no public key")
	}
	accepted, payload, err := verifier.VerifyAndDecode(ctx, envelope)
	if err != nil || len(accepted) == 0 {
		return Verified{}, notSigned(envelope, keys)
	}
	var s statement
	decoder := json.NewDecoder(bytes.NewReader(payload))
	if err := decoder.Decode(&s); err != nil || decoder.More() {
		return Verified{}, invalid("what is signed is not an in-toto statement", "")
	}
	switch {
	case s.Type != statementType:
		return Verified{}, invalid(fmt.Sprintf("what is signed is a %q, not a statement", s.Type), "")
	case s.PredicateType != wire.ReceiptPredicateType:
		return Verified{}, invalid(fmt.Sprintf("what is signed is a %q, not a receipt this version knows", s.PredicateType), "a newer dbops may know it")
	case s.Predicate.Attested.Request.OperationID == "":
		return Verified{}, invalid("what is signed names no operation", "")
	}
	return Verified{KeyID: accepted[0].KeyID, Subjects: s.Subject, Receipt: s.Predicate}, nil
}

// readEnvelope takes the one form that the plugin writes: nothing unknown, nothing
// twice, nothing behind it, payload and signatures in canonical base64. White
// space between the tokens does not count.
func readEnvelope(content []byte) (*dsse.Envelope, error) {
	const again = "read it again with dbops receipt <id> -out=<file>"
	envelope := new(dsse.Envelope)
	decoder := json.NewDecoder(bytes.NewReader(content))
	if err := decoder.Decode(envelope); err != nil {
		return nil, invalid("it is not a DSSE envelope", again)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, content); err != nil {
		return nil, invalid("something follows the envelope", again)
	}
	if written, err := json.Marshal(envelope); err != nil || !bytes.Equal(written, compact.Bytes()) {
		return nil, invalid("the envelope is not written as it was made: something is unknown, missing, doubled or misspelt in it", again)
	}
	if envelope.PayloadType != wire.ReceiptPayloadType {
		return nil, invalid(fmt.Sprintf("the payload's type is %q, not %q", envelope.PayloadType, wire.ReceiptPayloadType), "")
	}
	texts := []string{envelope.Payload}
	for _, signature := range envelope.Signatures {
		texts = append(texts, signature.Sig)
	}
	for _, text := range texts {
		raw, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || base64.StdEncoding.EncodeToString(raw) != text {
			return nil, invalid("payload or signature is not in canonical base64", again)
		}
	}
	if len(envelope.Signatures) == 0 {
		return nil, invalid("it is not signed", again)
	}
	return envelope, nil
}

// notSigned says why none of the keys has signed the envelope as it is.
func notSigned(envelope *dsse.Envelope, keys []Key) *wire.Error {
	var named []string
	for _, signature := range envelope.Signatures {
		for _, key := range keys {
			if key.ID == signature.KeyID {
				return invalid("it was altered after it was signed, or the signature is not of key "+key.ID, "read it again with dbops receipt <id> -out=<file>")
			}
		}
		named = append(named, signature.KeyID)
	}
	return invalid("it is signed with none of the keys given, but with "+strings.Join(named, ", "), "vault read -field=pem dbops/keys has all keys of the mount")
}

func invalid(reason, hint string) *wire.Error {
	return &wire.Error{Code: wire.CodeReceiptInvalid, Reason: "the receipt does not verify: " + reason, Hint: hint}
}
