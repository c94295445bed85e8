package account_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// talkative is a driver whose errors repeat what they should not.
type talkative struct {
	account.Driver
	err error
}

func (d talkative) Create(context.Context, account.CreateRequest) error { return d.err }

func TestSanitize(t *testing.T) {
	t.Parallel()
	root, login := wire.NewSecret("root-s3cret"), wire.NewSecret("login-s3cret")
	for name, test := range map[string]struct {
		err   error
		shown string
	}{
		"harmless":            {&account.Error{Op: "create", Reason: `role "x" does not exist`, State: "42704"}, `create: role "x" does not exist (SQLSTATE 42704)`},
		"root's password":     {&account.Error{Op: "create", Reason: "near root-s3cret", State: "42601"}, "withheld"},
		"a piece of it":       {&account.Error{Op: "create", Reason: `near "ot-s3c"`, State: "42601"}, "withheld"},
		"the new password":    {&account.Error{Op: "create", Reason: "near login-s3cret"}, "withheld"},
		"of unknown making":   {errors.New("root-s3cret"), "the database driver failed"},
		"wrapped unknown one": {errors.Join(errors.New("login-s3cret")), "the database driver failed"},
	} {
		driver := account.Sanitize(talkative{err: test.err}, root)
		err := driver.Create(t.Context(), account.CreateRequest{Password: login})
		require.ErrorContains(t, err, test.shown, name)
		require.NotContains(t, err.Error(), "s3c", name)
		var e *account.Error
		require.ErrorAs(t, err, &e, name)
	}
	require.NoError(t, account.Sanitize(talkative{}, root).Create(t.Context(), account.CreateRequest{}))
	require.True(t, account.Ambiguous(account.Sanitize(talkative{err: errors.New("x")}).Create(t.Context(), account.CreateRequest{})))
}
