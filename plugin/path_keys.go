package plugin

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/receipt"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// prefixSigningKey holds the keys that sign receipts, by the digest in their id.
// It is seal-wrapped.
const prefixSigningKey = "signing-key/"

// signingKey is the entry under signing-key/<hex>. No answer and no log has the
// seed.
type signingKey struct {
	// Number grows with each key; the highest one that has a seed signs.
	Number int64  `json:"number"`
	ID     string `json:"id"`         // digest of the public key
	PEM    string `json:"public_key"` // of the public key
	// Seed is the private key. It is gone from storage once the key is retired:
	// verifying does not need it, and what is not there cannot be stolen.
	Seed      string    `json:"seed,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	RetiredAt time.Time `json:"retired_at,omitzero"`
}

// signingKeys is what memory knows of them.
type signingKeys struct {
	// mu is held while keys are read or written, never while anything else is.
	mu    sync.Mutex
	known []signingKey // by number; nil: to be read
}

// forget makes the next use read the storage.
func (k *signingKeys) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = nil
}

func (b *backend) keyPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "keys/?$",
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathKeysRead},
		HelpSynopsis: "The public keys that receipts are verified with.",
		HelpDescription: `
Answers every key this mount has ever signed with: its id, which is the SHA-256 of
its DER form, when it was made and when it was retired. The field pem has all of
them for dbops receipt verify:

    vault read -field=pem dbops/keys > keys.pem`,
	}, {
		Pattern: "keys/rotate$",
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathKeysRotate, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Sign with a new key from now on.",
		HelpDescription: `
The private key of the one before is deleted. Its public key stays listed, and
what it has signed stays verifiable.`,
	}}
}

func (b *backend) pathKeysRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	keys, err := b.allKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	var bundle strings.Builder
	listed := make([]map[string]any, 0, len(keys))
	for _, key := range slices.Backward(keys) { // the one that signs first
		entry := map[string]any{"id": key.ID, "public_key": key.PEM, "created_at": key.CreatedAt.Format(time.RFC3339)}
		if !key.RetiredAt.IsZero() {
			entry["retired_at"] = key.RetiredAt.Format(time.RFC3339)
		}
		listed = append(listed, entry)
		bundle.WriteString(key.PEM)
	}
	return &logical.Response{Data: map[string]any{"current": keys[len(keys)-1].ID, "keys": listed, "pem": bundle.String()}}, nil
}

func (b *backend) pathKeysRotate(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.signing.mu.Lock()
	defer b.signing.mu.Unlock()
	before, err := b.loadKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	after, err := b.addKey(ctx, req.Storage, before)
	if err != nil {
		return nil, err
	}
	current := after[len(after)-1]
	b.noteFact(wire.Fact{EventType: wire.EventKeyRotated, Outcome: wire.OutcomeSuccess, EntityID: req.EntityID, Object: current.ID})
	b.Logger().Info("receipts are signed with a new key", "key_id", current.ID)
	return &logical.Response{Data: map[string]any{"current": current.ID}}, nil
}

// signingKey is the key that signs now, made when there is none.
func (b *backend) signingKey(ctx context.Context, s logical.Storage) (*receipt.Key, error) {
	keys, err := b.allKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	return receipt.OpenKey(wire.NewSecret(keys[len(keys)-1].Seed))
}

// allKeys returns at least one key, by number, the one that signs last. It makes
// the first, and finishes a rotation that a crash has left half done.
func (b *backend) allKeys(ctx context.Context, s logical.Storage) ([]signingKey, error) {
	b.signing.mu.Lock()
	defer b.signing.mu.Unlock()
	keys, err := b.loadKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return b.addKey(ctx, s, nil)
	}
	return keys, nil
}

// loadKeys reads all keys. The caller holds the lock.
func (b *backend) loadKeys(ctx context.Context, s logical.Storage) ([]signingKey, error) {
	if b.signing.known != nil {
		return b.signing.known, nil
	}
	stored, err := loadAll[signingKey](ctx, s, prefixSigningKey)
	if err != nil {
		return nil, err
	}
	keys := make([]signingKey, 0, len(stored))
	for _, key := range stored {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(x, y signingKey) int { return cmp.Compare(x.Number, y.Number) })
	if err := b.retireKeys(ctx, s, keys); err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		b.signing.known = keys
	}
	return keys, nil
}

// addKey stores a new key, which signs from then on, and retires the others. The
// caller holds the lock.
func (b *backend) addKey(ctx context.Context, s logical.Storage, before []signingKey) ([]signingKey, error) {
	made, err := receipt.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := made.PublicPEM()
	if err != nil {
		return nil, err
	}
	added := signingKey{Number: 1, ID: made.ID(), PEM: text, Seed: made.Seed().Reveal(), CreatedAt: b.now().UTC()}
	if len(before) > 0 {
		added.Number = before[len(before)-1].Number + 1
	}
	b.signing.known = nil // whatever fails below, the storage knows
	if err := putKey(ctx, s, added); err != nil {
		return nil, err
	}
	keys := append(slices.Clone(before), added)
	if err := b.retireKeys(ctx, s, keys); err != nil {
		return nil, err
	}
	b.signing.known = keys
	return keys, nil
}

// retireKeys retires all but the last of keys, where that has not been done.
func (b *backend) retireKeys(ctx context.Context, s logical.Storage, keys []signingKey) error {
	if !b.WriteSafeReplicationState() {
		return nil
	}
	for i := range keys[:max(0, len(keys)-1)] {
		if keys[i].Seed == "" {
			continue
		}
		keys[i].Seed, keys[i].RetiredAt = "", keys[i+1].CreatedAt
		if err := putKey(ctx, s, keys[i]); err != nil {
			return err
		}
		b.Logger().Info("signing key retired", "key_id", keys[i].ID)
	}
	return nil
}

func putKey(ctx context.Context, s logical.Storage, key signingKey) error {
	if key.ID == "" {
		return fmt.Errorf("store signing key %d: it has no id", key.Number)
	}
	return putStored(ctx, s, prefixSigningKey+strings.TrimPrefix(key.ID, "sha256:"), key)
}
