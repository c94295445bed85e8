package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	semver "github.com/hashicorp/go-version"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// DefaultVersion is what a plugin built without a version reports to Vault.
const DefaultVersion = "v0.1.0"

// schemaVersion is the layout of our storage. A mount written by a newer plugin
// is refused: reading it with an older one could lose accounts.
//
// 2: servers keep records of logins, which version 1 would take for orphans.
// 3: a rotation that was begun for a connection's own user stands under the
// connection's id, where version 2 would not find the password that may work.
const schemaVersion = 3

// FactoryFor returns a factory of engines that report version. Vault takes
// semantic versions only, so anything else is reported as [DefaultVersion].
func FactoryFor(version string) logical.Factory {
	parsed, err := semver.NewSemver(version)
	if err != nil {
		version = DefaultVersion
	} else {
		version = "v" + parsed.String()
	}
	return func(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
		b := newBackend(version, systemClock(), systemUptime())
		if err := b.Setup(ctx, conf); err != nil {
			return nil, fmt.Errorf("set up: %w", err)
		}
		return b, nil
	}
}

// backend is the engine of one mount.
type backend struct {
	*framework.Backend

	version string
	now     func() time.Time
	uptime  func() uptime
	began   clockPoint

	// refusal is set when the storage cannot be used by this version; every
	// request is then answered with it.
	refusal atomic.Pointer[wire.Error]

	connections *cache[connection] // by name
	retired     *cache[connection] // by connection id
	roles       *cache[role]       // by name
	staticRoles *cache[staticRole] // by name
	configLocks *nameLocks
	roleLocks   *nameLocks
	accounts    accountState

	rotations     *rotationQueue
	rotationLocks *keyLocks

	// readOnly says that this node may not write to storage. Vault then asks one that
	// may for what is answered with [logical.ErrReadOnly]. A login whose record is kept
	// by its server needs no write, but somebody to end it.
	readOnly atomic.Bool

	// work runs beside requests, from initialize to clean.
	work *work
	// wake starts a round of the sweeper; it holds at most one wish.
	wake chan struct{}

	facts *factBook // what no audit device sees by itself

	ops *operationState // policies, connections, operations and agents

	signing  signingKeys // of receipts
	receipts receiptWork
	looks    *looks // what was seen on servers, for posture
	lockdown *lockdown
	metrics  *metrics
	pruning  atomic.Bool // a round of removing old operations is going on
}

var _ logical.Backend = (*backend)(nil)

func newBackend(version string, now func() time.Time, up func() uptime) *backend {
	b := &backend{
		version:     version,
		now:         now,
		uptime:      up,
		began:       clockPoint{Wall: now().Round(0), Up: up()},
		configLocks: newNameLocks(),
		roleLocks:   newNameLocks(),
		accounts:    accountState{index: newAccountIndex(now)},
		work:        newWork(),
		wake:        make(chan struct{}, 1),
		lockdown:    newLockdown(),
	}
	b.connections = newCache(loadConnection, b.dropConnection)
	b.retired = newCache(loadRetired, b.dropConnection)
	b.roles = newCache(loadRole, func(*role) {})
	b.staticRoles = newCache(loadStaticRole, func(*staticRole) {})
	b.rotations, b.rotationLocks = newRotationQueue(b), newKeyLocks()
	b.ops, b.facts = newOperationState(b), newFactBook()
	b.looks, b.metrics = newLooks(b), newMetrics(version)
	b.Backend = &framework.Backend{
		Help:           strings.TrimSpace(backendHelp),
		BackendType:    logical.TypeLogical,
		RunningVersion: version,
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{prefixConfig, prefixRetired, prefixRole, prefixAccount, prefixStaticRole, prefixRotation, prefixSigningKey},
		},
		Paths:          b.paths(),
		Secrets:        []*framework.Secret{b.secretCreds(), b.secretAccount()},
		InitializeFunc: b.initialize,
		PeriodicFunc:   b.periodic,
		Invalidate:     b.invalidate,
		Clean:          b.clean,
	}
	return b
}

// paths composes the API of all parts.
func (b *backend) paths() []*framework.Path {
	var paths []*framework.Path
	paths = append(paths, b.infoPaths()...)
	paths = append(paths, b.configPaths()...)
	paths = append(paths, b.rolePaths()...)
	paths = append(paths, b.credsPaths()...)
	paths = append(paths, b.staticRolePaths()...)
	paths = append(paths, b.staticCredsPaths()...)
	paths = append(paths, b.rotatePaths()...)
	paths = append(paths, b.resetPaths()...)
	paths = append(paths, b.revocationPaths()...)
	paths = append(paths, b.lockdownPaths()...)
	paths = append(paths, b.settingsPaths()...)
	paths = append(paths, b.operationPaths()...)
	paths = append(paths, b.keyPaths()...)
	paths = append(paths, b.posturePaths()...)
	paths = append(paths, b.metricsPaths()...)
	return paths
}

// HandleRequest is where every request enters and every error leaves.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if refusal := b.refusal.Load(); refusal != nil && req.Operation != logical.HelpOperation {
		return b.answer(req, nil, refusal)
	}
	if unstorable(req) {
		return b.answer(req, nil, invalidField("name", "has two dots in a row, which Vault stores nothing under"))
	}
	counted, err := b.admit(ctx, req)
	if err != nil {
		return b.answer(req, nil, err)
	}
	if counted {
		defer b.leave()
	}
	b.clearMaps(req)
	resp, err := b.Backend.HandleRequest(ctx, req)
	return b.answer(req, resp, err)
}

// unstorable reports whether a request is for a name that Vault's storage refuses
// with an error of its own, which would be a 500.
func unstorable(req *logical.Request) bool { return strings.Contains(req.Path, "..") }

// HandleExistenceCheck decides between create and update. What is wrong with the
// request is left for HandleRequest to say, since an error here is a 500.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (bool, bool, error) {
	if b.refusal.Load() != nil || unstorable(req) {
		return false, false, nil //nolint:nilerr // HandleRequest refuses
	}
	b.clearMaps(req)
	found, exists, err := b.Backend.HandleExistenceCheck(ctx, req)
	var user errutil.UserError
	if errors.As(err, &user) {
		return false, false, nil
	}
	_, err = b.answer(req, nil, err)
	return found, exists, err
}

// initialize runs once after the mount is loaded, on the node that serves it. It
// starts what works in the background and waits for none of it: a database that
// does not answer must not delay Vault's start.
func (b *backend) initialize(ctx context.Context, req *logical.InitializationRequest) error {
	if err := b.checkSchema(ctx, req.Storage); err != nil {
		return err
	}
	if !b.WriteSafeReplicationState() {
		b.readOnly.Store(true)
		return nil
	}
	if _, err := b.mountID(ctx, req.Storage); err != nil {
		return err
	}
	if _, err := b.allKeys(ctx, req.Storage); err != nil {
		return err
	}
	if _, err := b.lockdownRecord(ctx, req.Storage); err != nil {
		return err
	}
	sweeper := newSweeper(b, req.Storage)
	b.work.run(sweeper.sweep)
	b.work.run(b.leaveServers)
	b.work.run(func(ctx context.Context) { b.rotations.work(ctx, req.Storage) })
	b.work.run(func(ctx context.Context) { b.enforceLockdown(ctx, req.Storage) })
	b.work.run(func(ctx context.Context) { b.keepFacts(ctx, req.Storage) })
	return b.opsInitialize(ctx, req)
}

// periodic is called about every minute. Vault waits for it, so it only wakes
// what works in the background.
func (b *backend) periodic(_ context.Context, req *logical.Request) error {
	select {
	case b.wake <- struct{}{}:
	default:
	}
	b.pruneSoon(req.Storage)
	return nil
}

// invalidate forgets what another node has changed.
func (b *backend) invalidate(_ context.Context, key string) {
	if name, ok := strings.CutPrefix(key, prefixConfig); ok {
		b.connections.put(name, nil)
	}
	if id, ok := strings.CutPrefix(key, prefixRetired); ok {
		b.retired.put(id, nil)
	}
	if name, ok := strings.CutPrefix(key, prefixRole); ok {
		b.roles.put(name, nil)
	}
	if name, ok := strings.CutPrefix(key, prefixStaticRole); ok {
		b.staticRoles.put(name, nil)
	}
	if strings.HasPrefix(key, prefixSigningKey) {
		b.signing.forget()
	}
	if key == keyLockdown {
		b.lockdown.set(nil)
	}
	b.opsInvalidate(key)
}

// cleanLimit is how long clean waits for calls to databases to end.
const cleanLimit = 2 * time.Second

// clean ends everything this instance started.
func (b *backend) clean(context.Context) {
	b.connections.clear()
	b.retired.clear()
	b.work.stop(cleanLimit)
}

// schema is the entry under [keySchema].
type schema struct {
	Version int `json:"version"`
}

// checkSchema writes the version into a new or older mount and refuses a newer
// one.
func (b *backend) checkSchema(ctx context.Context, s logical.Storage) error {
	stored, err := getStored[schema](ctx, s, keySchema)
	if err != nil {
		return err
	}
	if stored == nil || stored.Version < schemaVersion {
		if !b.WriteSafeReplicationState() {
			return nil
		}
		return putStored(ctx, s, keySchema, schema{Version: schemaVersion})
	}
	if stored.Version > schemaVersion {
		refusal := &wire.Error{
			Code:   wire.CodeConflict,
			Reason: fmt.Sprintf("this mount was written by a newer version of the plugin (storage schema %d, known up to %d)", stored.Version, schemaVersion),
			Hint:   "register and run the newer plugin",
		}
		b.refusal.Store(refusal)
		return refusal
	}
	return nil
}

const backendHelp = `
The dbops secrets engine hands out short-lived database logins and runs clones,
merges, migrations, backups and restores of databases without anyone holding a
standing password.

Its config, roles and creds paths answer like those of Vault's own database
secrets engine.
`
