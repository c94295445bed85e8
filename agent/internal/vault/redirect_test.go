package vault

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A standby that does not know the leader yet answers with a redirect. The body
// must arrive behind it, or the plugin would act on an empty request.
func TestClient_BodySurvivesRedirect(t *testing.T) {
	t.Parallel()
	bodies := make(chan string, 4)
	active := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			content = []byte(err.Error())
		}
		bodies <- string(content)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(active.Close)
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, active.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(standby.Close)

	client, err := Dial(Config{Address: standby.URL, Token: wire.NewSecret("token")})
	require.NoError(t, err)
	_, err = NewWork(client, "a1").Finish(context.Background(), "op-1", wire.FinishRequest{Fence: "7", Outcome: wire.StateFailed})
	require.NoError(t, err)
	require.JSONEq(t, `{"fence":"7","outcome":"failed"}`, <-bodies)
}
