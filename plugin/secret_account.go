package plugin

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// secretTypeAccount is the lease on an account of an operation.
const secretTypeAccount = "account"

func (b *backend) secretAccount() *framework.Secret {
	return &framework.Secret{
		Type: secretTypeAccount,
		Fields: map[string]*framework.FieldSchema{
			"username": {Type: framework.TypeString, Description: "Login of an operation."},
			"password": {Type: framework.TypeString, Description: "Its password."},
		},
		DefaultDuration: operationAccountTTL,
		Renew:           b.secretAccountRenew,
		Revoke:          b.secretAccountRevoke,
	}
}

// internalString reads what a lease carries of ours.
func internalString(req *logical.Request, key string) (string, error) {
	value, ok := req.Secret.InternalData[key].(string)
	if !ok || value == "" {
		return "", fmt.Errorf("lease has no %s", key)
	}
	return value, nil
}

// secretAccountRenew is decided by the operation alone: any token may renew a
// lease it knows. The account lives on while its claim stands and max_duration has
// not passed.
func (b *backend) secretAccountRenew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	values := map[string]string{}
	for _, key := range []string{"record_id", "operation_id", "fence", "phase"} {
		value, err := internalString(req, key)
		if err != nil {
			return nil, err
		}
		values[key] = value
	}
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	r := b.ops.operation(values["operation_id"])
	lost := &wire.Error{Code: wire.CodeLeaseLost, Reason: fmt.Sprintf("the claim on operation %s has ended", values["operation_id"])}
	if r == nil || r.Claim == nil || r.Claim.Fence != values["fence"] {
		return nil, lost
	}
	phase := wire.Phase(values["phase"])
	if phase == wire.PhasePlanning {
		lost.Reason = "accounts for inspection are not renewed"
		return nil, lost
	}
	ttl := min(claimTTL(phase), r.left(b.now()))
	if ttl <= 0 {
		lost.Reason = fmt.Sprintf("operation %s has used up its time", r.ID)
		return nil, lost
	}
	if err := b.ops.accounts.renewAccount(ctx, req.Storage, values["record_id"], ttl); err != nil {
		return nil, err
	}
	resp := &logical.Response{Secret: req.Secret}
	resp.Secret.TTL = ttl
	// Vault grants the increment that was asked for up to MaxTTL, counted from the
	// issue: the lease must not outlive the login.
	resp.Secret.MaxTTL = ttl
	if issued := req.Secret.IssueTime; !issued.IsZero() {
		resp.Secret.MaxTTL += max(0, b.now().Sub(issued))
	}
	return resp, nil
}

func (b *backend) secretAccountRevoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	record, err := internalString(req, "record_id")
	if err != nil {
		return nil, err
	}
	return nil, b.ops.accounts.endLeased(ctx, req.Storage, record)
}
