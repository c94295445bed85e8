package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What the logins of an operation may do is said by roles, and those who write roles
// are not those who approve. So the plugin itself puts the roles, as it would use
// them, at the end of every plan: the digest that approvers name covers them. They are
// pinned like all that a plan was decided on, and a login is made, renewed and ended by
// them alone.

// operationLogin is what a role comes to on a connection.
type operationLogin struct {
	wire.PlannedLogin
	// Digest covers it and where the connection leads.
	Digest string
}

// pinnedLogin is the role of one side as the plan has it.
type pinnedLogin struct {
	Role   string `json:"role"`
	Digest string `json:"digest"`
}

// operationLogin works out what a login by the role would be granted now. A role that
// cannot be used with the connection is refused.
func (b *backend) operationLogin(ctx context.Context, s logical.Storage, connection, role string) (operationLogin, error) {
	c, err := b.usableConnection(ctx, s, connection)
	if err != nil {
		return operationLogin{}, err
	}
	r, err := b.usableRole(ctx, s, role, c)
	if err != nil {
		return operationLogin{}, err
	}
	return c.login(r)
}

// login is what the role comes to on the connection. How long a login may live is not
// part of it: operations have limits of their own, and a role can only shorten them.
func (c *connection) login(r *role) (operationLogin, error) {
	creation, err := c.creationStatements(r)
	if err != nil {
		return operationLogin{}, err
	}
	l := operationLogin{PlannedLogin: wire.PlannedLogin{
		Connection: c.Name, Role: r.Name, Preset: string(r.Preset), CredentialType: r.CredentialType, CredentialConfig: r.CredentialConfig,
		Creation: creation, Revocation: r.RevocationStatements, Renew: r.RenewStatements,
	}}
	if r.Preset != "" {
		e, err := c.expand(r)
		if err != nil {
			return operationLogin{}, err
		}
		l.Preparation = e.Preparation.Statements
	}
	content, err := json.Marshal([]any{c.ID, l.PlannedLogin})
	if err != nil {
		return operationLogin{}, fmt.Errorf("encode role %s: %w", r.Name, err)
	}
	l.Digest = wire.Digest(content)
	return l, nil
}

// runningLogins are the logins of the running claim, by side, as they would be made now.
func (b *backend) runningLogins(ctx context.Context, s logical.Storage, sides *operationSides) (map[wire.Side]operationLogin, error) {
	logins := map[wire.Side]operationLogin{}
	for _, side := range sides.both() {
		purpose := wire.PhaseRunning.Purposes()[side.side]
		l, err := b.ops.accounts.operationLogin(ctx, s, side.endpoint.Connection, side.facts.Purposes[purpose])
		if err != nil {
			return nil, err
		}
		l.Side, l.Purpose = side.side, purpose
		logins[side.side] = l
	}
	return logins, nil
}

// pinLogins pins what the logins are granted.
func (p *pins) pinLogins(logins map[wire.Side]operationLogin) {
	source, target := logins[wire.Source], logins[wire.Target]
	p.SourceLogin = pinnedLogin{Role: source.Role, Digest: source.Digest}
	p.TargetLogin = pinnedLogin{Role: target.Role, Digest: target.Digest}
}

// login is what was pinned of one side, zero when nothing was.
func (p *pins) login(side wire.Side) pinnedLogin {
	switch {
	case p == nil:
		return pinnedLogin{}
	case side == wire.Target:
		return p.TargetLogin
	}
	return p.SourceLogin
}

// server is the one the plan found on a side.
func (p *pins) server(side wire.Side) string {
	if side == wire.Target {
		return p.TargetServer
	}
	return p.SourceServer
}

// withLogins puts the logins at the end of a plan's text, which was read before. The
// agent's bytes stay as they are.
func withLogins(text string, logins map[wire.Side]operationLogin) (string, error) {
	list := []wire.PlannedLogin{logins[wire.Source].PlannedLogin, logins[wire.Target].PlannedLogin}
	var content bytes.Buffer
	encoder := json.NewEncoder(&content)
	encoder.SetEscapeHTML(false) // people read it
	if err := encoder.Encode(list); err != nil {
		return "", fmt.Errorf("encode logins: %w", err)
	}
	head, isObject := strings.CutSuffix(strings.TrimRight(text, " \t\r\n"), "}")
	if !isObject {
		return "", invalidField("text", "is not a plan: it must be one JSON object")
	}
	return head + `,"` + wire.PlanLogins + `":` + strings.TrimSpace(content.String()) + "}", nil
}

// identityPatience is how long an operation waits for a server to say who it is. What
// is asked of the plugin meanwhile is unavailable, which agents ask again; then the
// server is, which ends the operation.
const identityPatience = time.Minute

// checkServer refuses when the server that would get a login is not the one of the plan.
// Its address is pinned by the configuration; what answers there is not.
func (b *backend) checkServer(ctx context.Context, s logical.Storage, r *operationRecord, side wire.Side, connection string) error {
	server, err := b.ownLook(ctx, s, r.ID, side, connection)
	if err == nil && server != r.Pins.server(side) {
		return planChanged("the server behind connection " + connection)
	}
	return err
}

// ownLook asks the server of one side of an operation who it is. Without an answer
// nothing is planned for it and nobody gets a login there.
func (b *backend) ownLook(ctx context.Context, s logical.Storage, id string, side wire.Side, connection string) (server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	identity, err := b.ops.accounts.serverIdentity(ctx, s, connection)
	if err == nil && identity.Server == "" {
		return "", &wire.Error{
			Code: wire.CodeUnsupported, Reason: fmt.Sprintf("the server behind connection %s does not say which it is", connection),
			Hint: "operations need a server whose identity the connection's user may read",
		}
	}
	var silent *wire.Error
	if err == nil || !errors.As(err, &silent) || silent.Code != wire.CodeUnavailable {
		b.ops.heardOfServer(id, side)
		return identity.Server, err
	}
	refusal := *silent
	refusal.Reason += "; until it says which server it is nothing is planned for it and no login made"
	if b.ops.serverSilent(id, side, b.now()) >= identityPatience {
		refusal.Code = sideUnavailable(side)
	}
	return "", &refusal
}

// sideUnavailable is [wire.CodeUnavailable] of a server.
func sideUnavailable(side wire.Side) wire.Code {
	if side == wire.Target {
		return wire.CodeTargetUnavailable
	}
	return wire.CodeSourceUnavailable
}

// sideKey is one side of an operation.
type sideKey struct {
	operation string
	side      wire.Side
}

// serverSilent notes that a server did not say who it is, and tells for how long
// nobody has heard it since it was asked for the operation.
func (o *operationState) serverSilent(id string, side wire.Side, now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := sideKey{id, side}
	since, known := o.silent[key]
	if !known {
		o.silent[key], since = now, now
	}
	return now.Sub(since)
}

// heardOfServer notes that it did.
func (o *operationState) heardOfServer(id string, side wire.Side) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.silent, sideKey{id, side})
}

// forgetSilence forgets an operation nobody works on. The caller holds o.mu.
func (o *operationState) forgetSilence(id string) {
	delete(o.silent, sideKey{id, wire.Source})
	delete(o.silent, sideKey{id, wire.Target})
}
