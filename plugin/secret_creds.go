package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// secretCredsType is the lease type of creds/, as Vault's engine names it.
const secretCredsType = "creds"

func (b *backend) secretCreds() *framework.Secret {
	return &framework.Secret{
		Type: secretCredsType,
		Fields: map[string]*framework.FieldSchema{
			"username": {Type: framework.TypeString, Description: "Username"},
			"password": {Type: framework.TypeString, Description: "Password"},
		},
		Renew:  b.secretCredsRenew,
		Revoke: b.secretCredsRevoke,
	}
}

// credsLease is what a lease keeps; with it the login can be ended even if the
// role and the record are gone.
type credsLease struct {
	RecordID   string   `json:"record_id"`
	Username   string   `json:"username"`
	Role       string   `json:"role"`
	DBName     string   `json:"db_name"`
	Revocation []string `json:"revocation_statements"`
	// ConnectionID is empty in leases of older versions.
	ConnectionID string `json:"connection_id"`
	// AtServer says that the server kept the record when the lease was made.
	AtServer bool `json:"at_server"`
	// TTL is what was asked for, in seconds; 0 is the role's default.
	TTL int64 `json:"ttl"`
}

func leaseOf(req *logical.Request) (credsLease, error) {
	var lease credsLease
	if req.Secret == nil {
		return lease, errors.New("request has no lease")
	}
	content, err := json.Marshal(req.Secret.InternalData)
	if err != nil {
		return lease, fmt.Errorf("encode lease: %w", err)
	}
	if err := json.Unmarshal(content, &lease); err != nil {
		return lease, fmt.Errorf("decode lease: %w", err)
	}
	if lease.RecordID == "" || lease.Username == "" {
		return lease, errors.New("the lease names no account")
	}
	return lease, nil
}

// secretCredsRenew renews as the role says now; without its role a login is not
// renewed.
func (b *backend) secretCredsRenew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	lease, err := leaseOf(req)
	if err != nil {
		return nil, err
	}
	r, err := b.roles.get(ctx, req.Storage, lease.Role)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, &wire.Error{Code: wire.CodeLeaseLost, Reason: fmt.Sprintf("role %q was deleted", lease.Role)}
	}
	preset := r.DefaultTTL
	if lease.TTL > 0 {
		preset = time.Duration(lease.TTL) * time.Second
	}
	ttl, warnings, err := framework.CalculateTTL(b.System(), req.Secret.Increment, preset, 0, r.MaxTTL, 0, req.Secret.IssueTime)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeLeaseLost, Reason: err.Error()}
	}
	if err := b.learnLeased(ctx, req.Storage, lease); err != nil {
		return nil, err
	}
	if err := b.renewAccount(ctx, req.Storage, lease.RecordID, ttl); err != nil {
		return nil, err
	}
	response := &logical.Response{Secret: req.Secret, Warnings: warnings}
	response.Secret.TTL, response.Secret.MaxTTL = ttl, r.MaxTTL
	return response, nil
}

// secretCredsRevoke ends the login. It succeeds even if the server cannot be
// reached: the account then stands under revocations/ and is tried for ever, while
// a lease would become irrevocable after six attempts.
func (b *backend) secretCredsRevoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	lease, err := leaseOf(req)
	if err != nil {
		return nil, err
	}
	if err := b.restoreRecord(ctx, req.Storage, lease); err != nil {
		return nil, err
	}
	return nil, b.endLeased(ctx, req.Storage, lease.RecordID)
}

// learnLeased makes known, after a start, an account whose record its server keeps.
func (b *backend) learnLeased(ctx context.Context, s logical.Storage, lease credsLease) error {
	if !lease.AtServer || b.accounts.index.has(lease.RecordID) {
		return nil
	}
	c, err := b.connectionOf(ctx, s, lease.DBName, lease.ConnectionID)
	if err != nil || c == nil {
		return err
	}
	return b.learnAccounts(ctx, s, c)
}

// restoreRecord makes a lease's record known again if it is missing although its
// login may still be there. Where the server kept it, it costs no write.
func (b *backend) restoreRecord(ctx context.Context, s logical.Storage, lease credsLease) error {
	if b.accounts.index.has(lease.RecordID) {
		return nil
	}
	record, err := getRecord(ctx, s, lease.RecordID)
	if err != nil || record != nil {
		return err
	}
	var c *connection
	if lease.ConnectionID == "" {
		c, err = b.connections.get(ctx, s, lease.DBName)
	} else {
		c, err = b.connectionOf(ctx, s, lease.DBName, lease.ConnectionID)
	}
	name, id := lease.DBName, lease.ConnectionID
	var unusable *wire.Error
	switch {
	case err != nil && id != "" && errors.As(err, &unusable):
		// Its configuration is wrong. That the login cannot be ended before it is
		// corrected is stored; Vault would give the lease up.
	case err != nil:
		return err
	case c == nil:
		return nil // nothing to end it with; the sweep had the record and is done with it
	default:
		name, id = c.Name, c.ID
	}
	now := b.now()
	return b.keepRecord(ctx, s, &accountRecord{
		ID: lease.RecordID, Connection: name, ConnectionID: id, Role: lease.Role, Username: lease.Username,
		CreatedAt: now, ExpiresAt: now, Revocation: lease.Revocation, atServer: lease.AtServer,
	})
}

// endLeased ends an account for the revocation of its lease: what fails and could
// be stored to be tried again is success. A mount that is being removed takes the
// stored record with it, so the log names the login that may be left.
func (b *backend) endLeased(ctx context.Context, s logical.Storage, recordID string) error {
	err := b.endAccount(ctx, s, recordID)
	if err == nil {
		return nil
	}
	if b.accounts.index.attempts(recordID) == 0 {
		return err // nothing was stored: let Vault try again
	}
	record, getErr := b.record(ctx, s, recordID)
	if getErr != nil || record == nil {
		return errors.Join(err, getErr)
	}
	if b.System().Tainted() {
		b.Logger().Error("the mount is being removed and this login could not be ended: drop it at the server",
			"connection", record.Connection, "username", record.Username, "error", err)
		return nil
	}
	b.Logger().Warn("a login could not be ended and is tried again",
		"connection", record.Connection, "username", record.Username, "record_id", recordID, "error", err)
	return nil
}
