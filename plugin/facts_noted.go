package plugin

import (
	"errors"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// refusalTypes are the refusals that are facts, by code.
var refusalTypes = map[wire.Code]wire.EventType{
	wire.CodeRateLimited:      wire.EventRateLimitExceeded,
	wire.CodeLimitExceeded:    wire.EventRateLimitExceeded,
	wire.CodeDenied:           wire.EventAccessDenied,
	wire.CodeNoIdentity:       wire.EventAccessDenied,
	wire.CodeUnclassified:     wire.EventAccessDenied,
	wire.CodeLocked:           wire.EventAccessDenied,
	wire.CodeSameDatabase:     wire.EventAccessDenied,
	wire.CodeProtectedTarget:  wire.EventAccessDenied,
	wire.CodeNotYourOperation: wire.EventUnauthorized,
}

// noteRefusal keeps a refusal by a limit, a policy or a missing right.
func (b *backend) noteRefusal(req *logical.Request, refusal *wire.Error) {
	eventType, ok := refusalTypes[refusal.Code]
	if !ok {
		return
	}
	severity := wire.SeverityWarning
	if eventType == wire.EventUnauthorized {
		severity = wire.SeverityCritical
	}
	object := req.Path
	if refusal.Policy != "" {
		object += " policy " + refusal.Policy
	}
	b.noteFact(wire.Fact{
		EventType: eventType, Severity: severity, Outcome: wire.OutcomeDenied, EntityID: req.EntityID, Object: object,
		Code: refusal.Code, Rule: refusal.Rule,
	})
}

// noteEnded keeps the end of a login, unless somebody asked Vault for it: then
// Vault's audit says so, and the agent's events for logins of operations.
func (b *backend) noteEnded(r *accountRecord, attempts int) {
	due := r.ExpiresAt.Sub(b.now()) <= expirySlack
	if !due && attempts == 0 {
		return
	}
	f := wire.Fact{
		EventType: wire.EventSessionExpired, Outcome: wire.OutcomeSuccess, OpID: r.OperationID, EntityID: r.EntityID,
		Connection: r.Connection, Role: r.Role, Username: r.Username, Detail: "its time was over",
	}
	if attempts > 0 {
		f.Detail = "ended after failed attempts"
	}
	b.noteFact(f)
}

// noteNotEnded keeps that a login could not be ended, once.
func (b *backend) noteNotEnded(r *accountRecord, failed *revocation) {
	if failed.Attempts != 1 {
		return
	}
	b.noteFact(wire.Fact{
		EventType: wire.EventRevocationFailed, Severity: wire.SeverityError, Outcome: wire.OutcomeFailure, OpID: r.OperationID, EntityID: r.EntityID,
		Connection: r.Connection, Role: r.Role, Username: r.Username, Code: failed.Code, Detail: "it is tried again until it succeeds",
	})
}

// noteOrphan keeps that a login of this mount was found that nobody knows of.
func (b *backend) noteOrphan(connection, username string) {
	b.noteFact(wire.Fact{
		EventType: wire.EventSuspicious, Severity: wire.SeverityWarning, Outcome: wire.OutcomeSuccess, Connection: connection, Username: username,
		Detail: "a login of this mount had no record and is ended",
	})
}

// noteRotated keeps how a rotation went; role is empty for a connection's own login.
func (b *backend) noteRotated(connection, role, username string, err error) {
	f := wire.Fact{EventType: wire.EventCredentialRotated, Outcome: wire.OutcomeSuccess, Connection: connection, Role: role, Username: username}
	if err != nil {
		f.Outcome, f.Severity, f.Code = wire.OutcomeFailure, wire.SeverityError, wire.CodeInternal
		var refusal *wire.Error
		if errors.As(err, &refusal) {
			f.Code = refusal.Code
		}
	}
	b.noteFact(f)
}

// noteOverdue keeps that the plugin itself ended an operation.
func (b *backend) noteOverdue(r *operationRecord) {
	f := wire.Fact{
		EventType: wire.EventOperationFinished, Severity: wire.SeverityWarning, Outcome: wire.OutcomeFailure, OpID: r.ID, EntityID: r.Requester.EntityID,
		Connection: r.Target, Detail: "ended by the engine in state " + string(r.State),
	}
	if r.LastClaim != nil {
		f.Agent = r.LastClaim.Agent
	}
	if r.Result != nil {
		f.Code = r.Result.Code
	}
	b.noteFact(f)
}

// cutText cuts text to so many bytes, between characters.
func cutText(text string, longest int) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "…"
}
