package account_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Each kind of failure has words of its own, the product's come first, and the
// text of an unknown error is not repeated.
func TestNetworkReason_NamesTheKindOnly(t *testing.T) {
	t.Parallel()
	own := errors.New("planted: pool is empty")
	ask := func(err error) string {
		if errors.Is(err, own) {
			return "all sessions to it are in use"
		}
		return ""
	}
	for want, err := range map[string]error{
		"all sessions to it are in use":                                own,
		"its certificate is for another name":                          x509.HostnameError{Certificate: &x509.Certificate{}, Host: "planted"},
		"its certificate is signed by an unknown authority":            x509.UnknownAuthorityError{},
		"its certificate is not valid":                                 &tls.CertificateVerificationError{Err: errors.New("planted")},
		"it does not speak TLS":                                        tls.RecordHeaderError{Msg: "planted"},
		"it ended the TLS handshake; it may want a client certificate": &net.OpError{Op: "remote error", Err: tls.AlertError(42)},
		"its name does not resolve":                                    &net.OpError{Op: "dial", Err: &net.DNSError{Err: "planted", Name: "planted"}},
		"the request was cancelled":                                    context.Canceled,
		"it did not answer in time":                                    &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded},
		"dial: connection refused":                                     &net.OpError{Op: "dial", Err: errors.New("connection refused")},
		"write":                                                        &net.OpError{Op: "write"},
		"the session broke off":                                        errors.New("planted-secret in a connection string"),
	} {
		require.Equal(t, want, account.NetworkReason(fmt.Errorf("wrapped: %w", err), ask))
	}
	require.Equal(t, "it did not answer in time", account.NetworkReason(context.DeadlineExceeded, nil))
	require.Equal(t, "the session broke off", account.NetworkReason(own, nil))
}

// What was not sent cannot have taken effect; the error is otherwise the same, and
// the one it was made of is not changed.
func TestUnsent_ClearsOnlyTheDoubt(t *testing.T) {
	t.Parallel()
	doubtful := &account.Error{Op: "create", Code: wire.CodeUnavailable, Reason: "r", State: "08006", Ambiguous: true}
	require.Equal(t, &account.Error{Op: "create", Code: wire.CodeUnavailable, Reason: "r", State: "08006"}, account.Unsent(doubtful))
	require.True(t, doubtful.Ambiguous)
	require.NoError(t, account.Unsent(nil))
	require.Equal(t, errForeign, account.Unsent(errForeign))
}

var errForeign = errors.New("not of ours")
