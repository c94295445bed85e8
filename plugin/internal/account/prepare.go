package account

import (
	"context"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Preparation is what a server needs once before logins of a kind can be made.
type Preparation struct {
	// Statements can be repeated. They hold no placeholders.
	Statements []string
	// Missing is a query of one text: what is not prepared yet, in words, or "".
	Missing string
}

// Preparer is a [Driver] that can prepare its server.
type Preparer interface {
	// Prepare runs the statements, all or none. Where the driver's own user lacks
	// the right but nothing is missing, somebody else has prepared the server and
	// that is success; else the error, with code privilege, says what is missing.
	Prepare(ctx context.Context, preparation Preparation) error
}

// Prepare prepares the server of a driver that can.
func Prepare(ctx context.Context, driver Driver, preparation Preparation) error {
	preparer, ok := driver.(Preparer)
	if !ok {
		return &Error{Op: "prepare", Code: wire.CodeUnsupported, Reason: "servers of this product are not prepared"}
	}
	return preparer.Prepare(ctx, preparation)
}
