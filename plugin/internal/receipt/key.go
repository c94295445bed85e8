package receipt

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Key signs receipts. It is safe for concurrent use.
type Key struct {
	private ed25519.PrivateKey
	id      string
}

var _ dsse.Signer = (*Key)(nil)

// NewKey makes a key from random.
func NewKey(random io.Reader) (*Key, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	return keyOf(seed)
}

// OpenKey is the key whose seed [Key.Seed] returned.
func OpenKey(seed wire.Secret) (*Key, error) {
	raw, err := base64.StdEncoding.DecodeString(seed.Reveal())
	if err != nil || len(raw) != ed25519.SeedSize {
		return nil, errors.New("open signing key: the stored seed is damaged") // never with the text
	}
	return keyOf(raw)
}

func keyOf(seed []byte) (*Key, error) {
	private := ed25519.NewKeyFromSeed(seed)
	der, err := publicDER(private)
	if err != nil {
		return nil, err
	}
	return &Key{private: private, id: wire.Digest(der)}, nil
}

// Seed is all of the key, in base64.
func (k *Key) Seed() wire.Secret {
	return wire.NewSecret(base64.StdEncoding.EncodeToString(k.private.Seed()))
}

// ID is the digest of the public key's DER form (SubjectPublicKeyInfo).
func (k *Key) ID() string { return k.id }

// PublicPEM is the public key as a PEM block, as openssl and others read it.
func (k *Key) PublicPEM() (string, error) {
	der, err := publicDER(k.private)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

func publicDER(private ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return der, nil
}

// Sign and KeyID make it a [dsse.Signer].
func (k *Key) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(k.private, data), nil
}

// KeyID is [Key.ID].
func (k *Key) KeyID() (string, error) { return k.id, nil }
