package account

import (
	"context"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Inspector is a [Driver] that can look at how safe its server is. It only reads,
// answers or fails within 4 s, and what it may not read it says in
// [posture.Facts]; an error means that the server could not be asked at all.
// Facts hold names of users and objects, no secret and no row data.
type Inspector interface {
	Inspect(ctx context.Context) (posture.Facts, error)
}

var _ Inspector = (*sanitized)(nil)

// Inspect asks the wrapped driver; one that cannot look is an error with code
// unsupported.
func (s *sanitized) Inspect(ctx context.Context) (posture.Facts, error) {
	const op = "inspect"
	inspector, ok := s.driver.(Inspector)
	if !ok {
		return posture.Facts{}, &Error{Op: op, Code: wire.CodeUnsupported, Reason: "servers of this product cannot be looked at"}
	}
	facts, err := inspector.Inspect(ctx)
	return facts, s.clean(op, err)
}
