package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Of 200 parallel requests at a limit of 50 an hour exactly 50 operations are
// stored, with Vault killed and started again in the middle: every request goes on
// under its request_id until it has an answer, and no answer is one too many.
func TestVault_LimitIsExactOverAKill(t *testing.T) {
	t.Parallel()
	const requests, limit, killAfter = 200, 50, 15
	d := newVaultDesk(t)
	d.put(d.v.Client, "dbops/policies/dev", "max_operations_per_hour", limit)

	all := d.askAtOnce("once", requests)
	for range killAfter {
		<-all.answered
	}
	d.v.Kill()
	d.v.Restart()
	admitted, limited, lost := all.wait()
	require.Equal(t, limit, admitted)
	require.Equal(t, requests-limit, limited)
	require.Positive(t, lost, "Vault was not killed in the middle")

	require.Len(t, d.stored(), limit)
	d.killPlugin() // what is stored, without what is remembered
	require.Len(t, d.stored(), limit)
	require.Equal(t, "max_operations_per_hour", d.refused(wire.CodeRateLimited, d.alice, "dbops/clone/prod/staging").Rule)
}

// The same with the plugin's clock set back an hour between the requests, by a
// plugin that starts with it: the windows keep what was admitted in what is now the
// future, and admit again when the clock is past it.
func TestVault_LimitHoldsWhenTheClockGoesBack(t *testing.T) {
	t.Parallel()
	const requests, limit = 200, 50
	d := newVaultDeskOn(t, testenv.VaultOptions{Raft: true, PluginBinary: testenv.FaultPlugin(t)})
	d.put(d.v.Client, "dbops/policies/dev", "max_operations_per_hour", limit)
	ask := func(name string, requests int) (admitted, limited int) {
		t.Helper()
		admitted, limited, lost := d.askAtOnce(name, requests).wait()
		require.Zero(t, lost)
		return admitted, limited
	}

	admitted, limited := ask("before", limit)
	require.Equal(t, limit, admitted)
	require.Zero(t, limited)
	before := d.stored()
	require.Len(t, before, limit)

	d.setClock(-time.Hour)
	refused := d.refused(wire.CodeRateLimited, d.alice, "dbops/clone/prod/staging")
	require.Equal(t, "max_operations_per_hour", refused.Rule)
	require.WithinDuration(t, time.Now().Add(time.Hour), refused.RetryAt, 10*time.Minute, "the window ends when it did before")
	admitted, limited = ask("back", requests)
	require.Zero(t, admitted)
	require.Equal(t, requests, limited)
	require.Equal(t, before, d.stored())

	d.setClock(time.Hour + time.Minute)
	admitted, limited = ask("forward", requests)
	require.Equal(t, limit, admitted)
	require.Equal(t, requests-limit, limited)
	after := d.stored()
	require.Len(t, after, 2*limit)
	require.Subset(t, after, before)
}

// setClock kills the plugin's process; the next one's clock is off by so much. Its
// binary must be testenv's FaultPlugin.
func (d *vaultDesk) setClock(offset time.Duration) {
	d.t.Helper()
	setClock(d.t, d.v, offset)
	d.killPlugin()
}

// setClock sets the clock of the plugin, which is testenv's FaultPlugin, while it runs.
func setClock(t *testing.T, v *testenv.VaultServer, offset time.Duration) {
	t.Helper()
	path := v.PluginFile(".clock-offset")
	require.NoError(t, os.WriteFile(path+".new", []byte(offset.String()), 0o600))
	require.NoError(t, os.Rename(path+".new", path)) // it is read at any time
}

// stored are the ids of all operations.
func (d *vaultDesk) stored() []any {
	d.t.Helper()
	listed, err := d.v.Client.Logical().List("dbops/all/operations")
	require.NoError(d.t, err)
	require.NotNil(d.t, listed)
	return listed.Data["keys"].([]any)
}

// requestsAtOnce are requests on their way.
type requestsAtOnce struct {
	d        *vaultDesk
	ctx      context.Context
	answered chan struct{} // one for each that was admitted
	group    sync.WaitGroup

	admitted, limited, lost atomic.Int64
}

// askAtOnce has alice ask for so many clones in parallel, each under a request_id of
// its own until it has an answer.
func (d *vaultDesk) askAtOnce(name string, requests int) *requestsAtOnce {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	d.t.Cleanup(cancel)
	all := &requestsAtOnce{d: d, ctx: ctx, answered: make(chan struct{}, requests)}
	for i := range requests {
		all.group.Go(func() { all.ask(fmt.Sprintf("%s-%d", name, i)) })
	}
	return all
}

func (all *requestsAtOnce) ask(id string) {
	for all.ctx.Err() == nil {
		_, err := all.d.alice.Logical().WriteWithContext(all.ctx, "dbops/clone/prod/staging", map[string]any{"request_id": id})
		var answer *api.ResponseError
		switch {
		case err == nil:
			all.admitted.Add(1)
			all.answered <- struct{}{}
			return
		case errors.As(err, &answer) && answer.StatusCode == http.StatusTooManyRequests:
			all.limited.Add(1)
			return
		case errors.As(err, &answer) && answer.StatusCode < http.StatusInternalServerError:
			all.d.t.Errorf("neither admitted nor limited: %v", err)
			return
		}
		all.lost.Add(1) // killed, sealed or starting
		select {
		case <-all.ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// wait returns how many were admitted, how many the limit refused, and how often one
// got no answer.
func (all *requestsAtOnce) wait() (admitted, limited, lost int) {
	all.d.t.Helper()
	all.group.Wait()
	require.NoError(all.d.t, all.ctx.Err())
	admitted, limited, lost = int(all.admitted.Load()), int(all.limited.Load()), int(all.lost.Load())
	all.d.t.Logf("%d admitted, %d limited, %d attempts without an answer", admitted, limited, lost)
	return admitted, limited, lost
}
