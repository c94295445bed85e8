package vault

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// tally keeps what an observer is told.
type tally struct {
	mu                        sync.Mutex
	answers, logins, renewals []wire.Code
}

var _ Observer = (*tally)(nil)

func (c *tally) keep(list *[]wire.Code, code wire.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*list = append(*list, code)
}

func (c *tally) VaultAnswered(code wire.Code) { c.keep(&c.answers, code) }
func (c *tally) LoggedIn(code wire.Code)      { c.keep(&c.logins, code) }
func (c *tally) TokenRenewed(code wire.Code)  { c.keep(&c.renewals, code) }

// Each request is told once with how it was answered, but not one whose caller had
// to stop.
func TestClient_Observer(t *testing.T) {
	t.Parallel()
	for status, body := range map[int]string{
		http.StatusOK:                 `{"data":{}}`,
		http.StatusConflict:           `{"errors":["stale_claim: not the current one"]}`,
		http.StatusServiceUnavailable: `{"errors":["Vault is sealed"]}`,
	} {
		work, _, _ := answering(t, status, body)
		counts := &tally{}
		work.client.observer = counts
		_, err := work.Poll(context.Background(), wire.PollRequest{})
		require.Equal(t, []wire.Code{codeOrNone(err)}, counts.answers)
		require.Equal(t, status == http.StatusOK, err == nil)

		stopped, stop := context.WithCancel(context.Background())
		stop()
		_, err = work.Poll(stopped, wire.PollRequest{})
		require.Error(t, err)
		require.Len(t, counts.answers, 1)
	}
}
