package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// DefaultTimeout is how long one request may take unless it says otherwise.
// Nothing of ours makes Vault think longer than two seconds but a call to a
// database.
const DefaultTimeout = 10 * time.Second

// maxAnswerBytes bounds what is read of one answer; Vault itself takes no more
// than 32 MiB in a request.
const maxAnswerBytes = 64 << 20

// Config says where Vault is. Empty fields are taken from the environment
// (VAULT_ADDR, VAULT_CACERT, VAULT_NAMESPACE, VAULT_TOKEN, …), as the vault
// program does.
type Config struct {
	Address   string
	CACert    string // file with PEM certificates
	Namespace string
	Mount     string // where dbops is mounted; wire.DefaultMount when empty
	Token     wire.Secret
	UserAgent string
	// WithoutEnvironmentToken leaves VAULT_TOKEN alone: a daemon must not work
	// with a token that somebody's shell left behind.
	WithoutEnvironmentToken bool
	Observer                Observer // nil: nobody counts
}

// Client talks to one Vault. It is safe for concurrent use.
type Client struct {
	api   *api.Client
	mount wire.Mount
	agent string // User-Agent
	token atomic.Pointer[wire.Secret]
	// refused gets a token (of no meaning) when Vault refuses a request without
	// one of our codes: the client's token may have ended.
	refused  chan struct{}
	observer Observer
}

// Dial makes a client. It sends nothing yet.
func Dial(config Config) (*Client, error) {
	settings := api.DefaultConfig()
	if settings.Error != nil {
		return nil, fmt.Errorf("read environment for vault: %w", settings.Error)
	}
	if config.Address != "" {
		settings.Address = config.Address
		settings.AgentAddress = ""
	}
	if config.CACert != "" {
		if err := settings.ConfigureTLS(&api.TLSConfig{CACert: config.CACert}); err != nil {
			return nil, fmt.Errorf("read ca_cert: %w", err)
		}
	}
	// vault/api would send a PUT three times on a 5xx, blindly and with its own
	// pauses. Ours are idempotent, but only the caller knows until when a repeat
	// makes sense.
	settings.MaxRetries = 0
	settings.Timeout = 0 // each request has its own
	client, err := api.NewClient(settings)
	if err != nil {
		return nil, fmt.Errorf("make vault client: %w", err)
	}
	if config.Namespace != "" {
		client.SetNamespace(config.Namespace)
	}
	mount := strings.Trim(config.Mount, "/")
	if mount == "" {
		mount = wire.DefaultMount
	}
	c := &Client{api: client, mount: wire.Mount(mount), agent: config.UserAgent, refused: make(chan struct{}, 1), observer: config.Observer}
	if c.observer == nil {
		c.observer = unobserved{}
	}
	token := config.Token
	if token.Empty() && !config.WithoutEnvironmentToken {
		token = wire.NewSecret(client.Token())
	}
	client.ClearToken()
	c.SetToken(token)
	return c, nil
}

// Mount is where dbops is mounted.
func (c *Client) Mount() wire.Mount { return c.mount }

// Address is where requests go.
func (c *Client) Address() string { return c.api.Address() }

// SetToken makes later requests use token.
func (c *Client) SetToken(token wire.Secret) { c.token.Store(&token) }

// request is one call of Vault's HTTP API.
type request struct {
	do        string              // verb and object, for errors: "poll for work"
	method    string              // GET, PUT, DELETE or LIST
	path      string              // below /v1/
	query     map[string][]string // of a GET
	body      any                 // encoded as JSON; nil: none
	operation string              // sent as X-Correlation-Id, which Vault audits by itself
	token     *wire.Secret
	wrapTTL   time.Duration // ask for a wrapped answer
	timeout   time.Duration // DefaultTimeout when zero
}

// answer is the envelope of Vault's answers. Auth.ClientToken and WrapInfo.Token
// are boxed by [Client.do]; Data may hold secrets and is for the caller to box.
type answer struct {
	Data          json.RawMessage `json:"data"`
	LeaseID       string          `json:"lease_id"`
	LeaseDuration int64           `json:"lease_duration"` // seconds
	Renewable     bool            `json:"renewable"`
	Warnings      []string        `json:"warnings"`
	Auth          *answerAuth     `json:"auth"`
	WrapInfo      *answerWrap     `json:"wrap_info"`
}

type answerAuth struct {
	Token         boxed             `json:"client_token"`
	Accessor      string            `json:"accessor"`
	LeaseDuration int64             `json:"lease_duration"` // seconds
	Renewable     bool              `json:"renewable"`
	EntityID      string            `json:"entity_id"`
	Metadata      map[string]string `json:"metadata"`
}

type answerWrap struct {
	Token boxed `json:"token"`
	TTL   int64 `json:"ttl"` // seconds
}

// boxed decodes a JSON string straight into a secret. It lives in answers only;
// wire.Secret itself refuses to be decoded, so that a redacted text is never
// taken for a value.
type boxed struct{ wire.Secret }

// UnmarshalJSON boxes the string.
func (b *boxed) UnmarshalJSON(content []byte) error {
	var value string
	if err := json.Unmarshal(content, &value); err != nil {
		return fmt.Errorf("decode secret: %w", err)
	}
	b.Secret = wire.NewSecret(value)
	return nil
}

// UnmarshalText hides the refusing one of the box within.
func (b *boxed) UnmarshalText(content []byte) error {
	b.Secret = wire.NewSecret(string(content))
	return nil
}

// do sends r once and decodes the data of the answer into out, unless out is
// nil. An empty answer (204) is fine. Errors are [*Error], or ctx's cause.
func (c *Client) do(ctx context.Context, r request, out any) (answer, error) {
	a, err := c.once(ctx, r, out)
	if ctx.Err() == nil { // else we were told to stop
		c.observer.VaultAnswered(codeOrNone(err))
	}
	return a, err
}

func (c *Client) once(ctx context.Context, r request, out any) (answer, error) {
	timeout := r.timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := c.send(limited, r)
	if response != nil {
		defer func() { _ = response.Body.Close() }() // nothing left to lose
	}
	if err != nil {
		if ctx.Err() != nil {
			return answer{}, fmt.Errorf("%s: %w", r.do, context.Cause(ctx))
		}
		failure := border(r.do, err)
		if failure.Status == http.StatusForbidden && failure.bare {
			select {
			case c.refused <- struct{}{}:
			default: // somebody is told already
			}
		}
		return answer{}, failure
	}
	content, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return answer{}, border(r.do, fmt.Errorf("read answer: %w", err))
	}
	var a answer
	if len(content) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(content, &a); err != nil {
		return answer{}, undecodable(r.do, err)
	}
	if out != nil && len(a.Data) > 0 {
		if err := json.Unmarshal(a.Data, out); err != nil {
			return answer{}, undecodable(r.do, err)
		}
	}
	return a, nil
}

func (c *Client) send(ctx context.Context, r request) (*api.Response, error) {
	token := r.token
	if token == nil {
		token = c.token.Load()
	}
	client := c.api.WithRequestCallbacks(func(req *api.Request) {
		req.ClientToken = token.Reveal()
		if c.agent != "" {
			req.Headers.Set("User-Agent", c.agent)
		}
		if r.operation != "" {
			req.Headers.Set("X-Correlation-Id", r.operation)
		}
		if r.wrapTTL > 0 {
			req.WrapTTL = fmt.Sprintf("%ds", int(r.wrapTTL.Seconds()))
		}
	})
	logical := client.Logical()
	switch r.method {
	case http.MethodGet:
		return logical.ReadRawWithDataWithContext(ctx, r.path, r.query)
	case "LIST":
		return logical.ReadRawWithDataWithContext(ctx, r.path, map[string][]string{"list": {"true"}})
	case http.MethodDelete:
		return logical.DeleteRawWithContext(ctx, r.path)
	default:
		write := client.NewRequest(http.MethodPut, "/v1/"+r.path)
		var body any = struct{}{}
		if r.body != nil {
			body = r.body
		}
		// Not WriteRaw: after a redirect, which is what a standby answers while a
		// leader is being elected, vault/api 1.23 sends its bytes again as "null".
		if err := write.SetJSONBody(body); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		return client.RawRequestWithContext(ctx, write) //nolint:staticcheck // deprecated in favour of WriteRaw
	}
}
