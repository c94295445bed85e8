package plugin

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Of 200 parallel requests at a limit of 50 an hour exactly 50 operations are
// stored, with Vault killed and started again in the middle: every request goes on
// under its request_id until it has an answer, and no answer is one too many.
func TestVault_LimitIsExactOverAKill(t *testing.T) {
	t.Parallel()
	const requests, limit, killAfter = 200, 50, 15
	d := newVaultDesk(t)
	d.put(d.v.Client, "dbops/policies/dev", "max_operations_per_hour", limit)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var admitted, limited, lost atomic.Int64
	answered := make(chan struct{}, requests)
	var wait sync.WaitGroup
	for i := range requests {
		wait.Go(func() {
			for ctx.Err() == nil {
				_, err := d.alice.Logical().WriteWithContext(ctx, "dbops/clone/prod/staging", map[string]any{"request_id": time.Duration(i).String()})
				var answer *api.ResponseError
				switch {
				case err == nil:
					admitted.Add(1)
					answered <- struct{}{}
					return
				case errors.As(err, &answer) && answer.StatusCode == http.StatusTooManyRequests:
					limited.Add(1)
					return
				case errors.As(err, &answer) && answer.StatusCode < http.StatusInternalServerError:
					t.Errorf("neither admitted nor limited: %v", err)
					return
				}
				lost.Add(1) // killed, sealed or starting
				select {
				case <-ctx.Done():
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	}
	for range killAfter {
		<-answered
	}
	d.v.Kill()
	d.v.Restart()
	wait.Wait()
	require.NoError(t, ctx.Err())
	t.Logf("%d admitted, %d limited, %d attempts without an answer", admitted.Load(), limited.Load(), lost.Load())
	require.EqualValues(t, limit, admitted.Load())
	require.EqualValues(t, requests-limit, limited.Load())
	require.Positive(t, lost.Load(), "Vault was not killed in the middle")

	listed, err := d.v.Client.Logical().List("dbops/all/operations")
	require.NoError(t, err)
	require.Len(t, listed.Data["keys"], limit)
	d.killPlugin() // what is stored, without what is remembered
	listed, err = d.v.Client.Logical().List("dbops/all/operations")
	require.NoError(t, err)
	require.Len(t, listed.Data["keys"], limit)
	require.Equal(t, "max_operations_per_hour", d.refused(wire.CodeRateLimited, d.alice, "dbops/clone/prod/staging").Rule)
}
