package postgres

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Each error of a server has a code, and shows names and SQLSTATE only.
func TestFault(t *testing.T) {
	for state, code := range map[string]wire.Code{
		"28P01": wire.CodeLoginRefused, "28000": wire.CodeLoginRefused, "42501": wire.CodePrivilege, "53100": wire.CodeDiskFull,
		"57P01": wire.CodeSourceUnavailable, "08006": wire.CodeSourceUnavailable, "3D000": wire.CodeSourceUnavailable, "53300": wire.CodeSourceUnavailable,
		"0A000": wire.CodeUnsupported, "23505": wire.CodeEngine, "XX001": wire.CodeEngine,
	} {
		secret := "someone@example.test"
		err := fault(wire.StepCopy, wire.Source, "copy table a.b", fmt.Errorf("wrapped: %w", &pgconn.PgError{
			Code: state, Message: secret, Detail: secret, Hint: secret, Where: secret, InternalQuery: secret, TableName: "b", SchemaName: "a",
		}))
		require.Equal(t, code, err.Code, state)
		require.Contains(t, err.Reason, state)
		require.Contains(t, err.Reason, "a.b")
		require.NotContains(t, fmt.Sprintf("%v %+v %#v %v", err, err, err.Err, err.Hint), secret)
	}
	require.Equal(t, wire.CodeTargetUnavailable, fault("", wire.Source, "x", &sideError{wire.Target, fmt.Errorf("broken pipe")}).Code)
	require.Equal(t, wire.CodeCheckFailed, fault("", wire.Source, "x", &sideError{wire.Target, errRowCount}).Code)
	require.Equal(t, wire.CodeCancelled, fault("", wire.Source, "x", context.Canceled).Code)
	require.Equal(t, wire.CodeInternal, fault("", wire.Source, "x", errStuck).Code)
}
