package parity_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Texts that stand for something else in each engine's requests.
const (
	// engineMark is replaced by the engine's name: what both would change, such as
	// a static user's password, each has for itself.
	engineMark = "<engine>"
	// leaseMark and a name, closed by ">", is replaced by the lease of that name.
	leaseMark = "<lease "
)

// fields is a request's body.
type fields map[string]any

// row is one request of the table, sent to both engines.
type row struct {
	// name says what is asked; it is unique.
	name string
	// method and path are the request's; the path is below the engine's mount, or
	// below /v1 if it begins with a slash.
	method, path string
	// body is sent as JSON unless it is nil.
	body any
	// lease, if set, keeps the answer's lease under this name.
	lease string
	// down says that a database is down, the only reason for us to answer 5xx.
	down bool
	// same are the paths in the answer whose values must be equal too.
	same []string
}

func get(name, path string, same ...string) row {
	return row{name: name, method: http.MethodGet, path: path, same: same}
}

func list(name, path string) row {
	return row{name: name, method: "LIST", path: path, same: []string{"data.keys"}}
}

func put(name, path string, body fields) row {
	return row{name: name, method: http.MethodPut, path: path, body: body}
}

func del(name, path string) row {
	return row{name: name, method: http.MethodDelete, path: path}
}

// down is the row when it meets a database that is down.
func down(r row) row {
	r.down = true
	return r
}

// lend reads creds and keeps the lease.
func lend(name, path, lease string, same ...string) row {
	return row{name: name, method: http.MethodGet, path: path, lease: lease, same: same}
}

func renew(name, lease string, increment int, same ...string) row {
	return row{
		name: name, method: http.MethodPut, path: "/sys/leases/renew", same: same,
		body: fields{"lease_id": leaseMark + lease + ">", "increment": increment},
	}
}

func revoke(name, lease string) row {
	return row{
		name: name, method: http.MethodPut, path: "/sys/leases/revoke",
		body: fields{"lease_id": leaseMark + lease + ">", "sync": true},
	}
}

// engine is one of the two that are compared.
type engine struct {
	name  string // of the mount, and what [engineMark] stands for
	vault *testenv.VaultServer

	leases map[string]string
}

// answer is what came back.
type answer struct {
	status int // 0: none, the connection was closed
	body   any // decoded JSON; nil without a body
	text   string
}

func (e *engine) fill(text string) string {
	text = strings.ReplaceAll(text, engineMark, e.name)
	for name, id := range e.leases {
		text = strings.ReplaceAll(text, leaseMark+name+">", id)
	}
	return text
}

// ask sends the row's request to this engine.
func (e *engine) ask(t *testing.T, r row) answer {
	t.Helper()
	path := "/" + e.name + "/" + r.path
	if strings.HasPrefix(r.path, "/") {
		path = r.path
	}
	var body io.Reader
	if r.body != nil {
		// Without escaping "<", which the marks have.
		var content bytes.Buffer
		encoder := json.NewEncoder(&content)
		encoder.SetEscapeHTML(false)
		require.NoError(t, encoder.Encode(r.body))
		body = strings.NewReader(e.fill(content.String()))
	}
	request, err := http.NewRequestWithContext(t.Context(), r.method, e.vault.Address+"/v1"+e.fill(path), body)
	require.NoError(t, err, r.name)
	request.Header.Set("X-Vault-Token", e.vault.RootToken)
	if r.method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{text: err.Error()} // the server closed the connection without a word
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err, r.name)
	a := answer{status: response.StatusCode, text: strings.TrimSpace(string(content))}
	if len(a.text) > 0 {
		require.NoError(t, json.Unmarshal(content, &a.body), "%s: %s", r.name, a.text)
	}
	if r.lease != "" {
		e.leases[r.lease] = fmt.Sprint(a.at("lease_id"))
	}
	return a
}

// at returns the value at a path such as "data.allowed_roles", nil without one.
func (a answer) at(path string) any {
	value := a.body
	for key := range strings.SplitSeq(path, ".") {
		object, _ := value.(map[string]any)
		value = object[key]
	}
	return value
}

// String is the answer for people, without what is the same in all.
func (a answer) String() string {
	text := a.text
	if data := a.at("data"); data != nil {
		text = fmt.Sprint(data)
	}
	if warnings := a.at("warnings"); warnings != nil {
		text += fmt.Sprint(" warnings: ", warnings)
	}
	return fmt.Sprintf("%d %.600s", a.status, text)
}
