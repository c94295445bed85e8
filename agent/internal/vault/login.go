package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/renameio/v2"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// AppRole is how an agent proves who it is. The role is named like the agent.
type AppRole struct {
	Agent        string
	Mount        string // of the auth method, e.g. "approle"
	RoleIDFile   string
	SecretIDFile string
	// Wrapped says that the file holds a wrapping token instead of the secret-id:
	// it can be opened once, so a thief is noticed.
	Wrapped bool
	// RemoveSecretID removes the file after a login with it.
	RemoveSecretID bool
	// TokenFile keeps the token across restarts of the agent; empty: memory only.
	// It must be on a file system in memory.
	TokenFile string
}

// Bounds of the renewing loop.
const (
	loginRetryMax   = 30 * time.Second // longest pause between two tries
	refusedMinPause = 5 * time.Second  // between two looks at a token that was refused
	minTokenTTL     = 10 * time.Second // with less than this left a new login is made
	maxSecretFile   = 64 << 10
)

// Session keeps a client logged in.
type Session struct {
	client  *Client
	approle AppRole
	log     hclog.Logger
	// secretID is the unwrapped secret-id, kept in memory in case it may be used
	// again. Empty before the first unwrap and after Vault refused it.
	secretID wire.Secret
	ttl      time.Duration // of the token, at the last login or renewal
	renewal  bool          // whether the token can be renewed
}

// NewSession makes a session; [Session.Login] comes first, then [Session.Run].
func NewSession(client *Client, approle AppRole, log hclog.Logger) *Session {
	return &Session{client: client, approle: approle, log: log.Named("login")}
}

// Login gets a token and waits for Vault as long as ctx allows. A refusal is
// returned at once.
func (s *Session) Login(ctx context.Context) error {
	if s.approle.TokenFile != "" {
		if err := inMemory(filepath.Dir(s.approle.TokenFile)); err != nil {
			return loginError("keep_token", err) // before a secret-id is used up
		}
	}
	if s.resume(ctx) {
		return nil
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.login(ctx)
		if err != nil && !temporary(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(loginBackOff()), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, pause time.Duration) {
		s.log.Warn("cannot log in, trying again", "error", err, "pause", pause)
	}))
	if err != nil {
		return fmt.Errorf("log in to vault: %w", err)
	}
	return nil
}

// Run renews the token until ctx ends, and logs in again when it has ended. It
// never gives up: an operator can put a new secret-id in place at any time.
func (s *Session) Run(ctx context.Context) {
	failures := loginBackOff()
	pause := s.untilRenewal()
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.client.refused:
			timer.Stop()
			if !wait.For(ctx, refusedMinPause) {
				return
			}
		}
		err := s.renew(ctx)
		if err != nil && !temporary(err) {
			s.log.Info("token cannot be renewed, logging in again", "error", err)
			err = s.login(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = failures.NextBackOff()
			s.log.Warn("cannot keep the token alive", "error", err, "pause", pause)
		default:
			failures.Reset()
			pause = s.untilRenewal()
		}
	}
}

// Close ends the token unless it is kept for the next start. Every lease made
// with it ends too.
func (s *Session) Close(ctx context.Context) error {
	if s.approle.TokenFile != "" {
		return nil
	}
	_, err := s.client.do(ctx, request{do: "end own token", method: http.MethodPut, path: "auth/token/revoke-self"}, nil)
	return err
}

// resume takes the token a former start has kept, if it still lives.
func (s *Session) resume(ctx context.Context) bool {
	if s.approle.TokenFile == "" {
		return false
	}
	token, err := readSecret(s.approle.TokenFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot use the kept token", "error", err)
		}
		return false
	}
	s.client.SetToken(token)
	if err := s.renew(ctx); err != nil {
		s.log.Info("the kept token has ended", "error", err)
		return false
	}
	s.log.Info("going on with the token kept from the last start")
	return true
}

func (s *Session) login(ctx context.Context) error {
	err := s.loginOnce(ctx)
	if ctx.Err() == nil {
		s.client.observer.LoggedIn(codeOrNone(err))
	}
	return err
}

func (s *Session) loginOnce(ctx context.Context) error {
	roleID, err := readSmallFile(s.approle.RoleIDFile) // a name, no secret
	if err != nil {
		return loginError("role_id_file", err)
	}
	fresh := s.secretID.Empty()
	if fresh {
		if err := s.takeSecretID(ctx); err != nil {
			return err
		}
	}
	nobody := wire.Secret{}
	a, err := s.client.do(ctx, request{
		do: "log in by approle", method: http.MethodPut, path: "auth/" + s.approle.Mount + "/login", token: &nobody,
		body: map[string]string{"role_id": roleID.Reveal(), "secret_id": s.secretID.Reveal()},
	}, nil)
	if err != nil {
		if temporary(err) {
			return err // the secret-id may not have been used
		}
		s.secretID = wire.Secret{}
		if !fresh {
			return s.loginOnce(ctx) // it was used up; perhaps there is a new one
		}
		return err
	}
	if a.Auth == nil || a.Auth.Token.Empty() {
		return loginError("vault", errors.New("the answer holds no token"))
	}
	if role := a.Auth.Metadata["role_name"]; role != s.approle.Agent {
		return loginError("name", fmt.Errorf("the role of this role_id is %q, the agent's name is %q; they must be equal", role, s.approle.Agent))
	}
	s.client.SetToken(a.Auth.Token.Secret)
	s.ttl, s.renewal = time.Duration(a.Auth.LeaseDuration)*time.Second, a.Auth.Renewable
	s.log.Info("logged in", "ttl", s.ttl, "renewable", s.renewal, "entity_id", a.Auth.EntityID)
	return s.afterLogin(a.Auth.Token.Secret)
}

func (s *Session) afterLogin(token wire.Secret) error {
	if s.approle.TokenFile != "" {
		if err := renameio.WriteFile(s.approle.TokenFile, []byte(token.Reveal()), 0o600, renameio.WithTempDir(filepath.Dir(s.approle.TokenFile))); err != nil {
			return loginError("keep_token", fmt.Errorf("keep token: %w", err))
		}
	}
	if s.approle.RemoveSecretID {
		if err := os.Remove(s.approle.SecretIDFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return loginError("secret_id_file", fmt.Errorf("remove file: %w", err))
		}
	}
	return nil
}

// takeSecretID reads the secret-id, and unwraps it where it is wrapped.
func (s *Session) takeSecretID(ctx context.Context) error {
	content, err := readSecret(s.approle.SecretIDFile)
	if err != nil {
		return loginError("secret_id_file", err)
	}
	if !s.approle.Wrapped {
		s.secretID = content
		return nil
	}
	if err := s.checkWrapping(ctx, content); err != nil {
		return err
	}
	var unwrapped struct {
		SecretID boxed `json:"secret_id"`
	}
	_, err = s.client.do(ctx, request{do: "unwrap secret-id", method: http.MethodPut, path: "sys/wrapping/unwrap", token: &content}, &unwrapped)
	if err != nil {
		return openedByAnother(err)
	}
	if unwrapped.SecretID.Empty() {
		return loginError("secret_id_file", errors.New("the wrapping token holds no secret-id"))
	}
	s.secretID = unwrapped.SecretID.Secret
	return nil
}

// checkWrapping makes sure that the wrapped answer is one of this agent's
// AppRole: somebody who opened it could have wrapped another answer instead.
func (s *Session) checkWrapping(ctx context.Context, token wire.Secret) error {
	var wrapped struct {
		CreationPath string `json:"creation_path"`
	}
	nobody := wire.Secret{}
	_, err := s.client.do(ctx, request{
		do: "look up wrapping token", method: http.MethodPut, path: "sys/wrapping/lookup", token: &nobody,
		body: map[string]string{"token": token.Reveal()},
	}, &wrapped)
	if err != nil {
		return openedByAnother(err)
	}
	want := "auth/" + s.approle.Mount + "/role/" + s.approle.Agent + "/secret-id"
	if wrapped.CreationPath != want {
		return loginError("secret_id_file", fmt.Errorf("the wrapping token was made at %q instead of %q: do not trust it", wrapped.CreationPath, want))
	}
	return nil
}

// openedByAnother explains a refused wrapping token: it is the one sign of a
// stolen secret-id there is.
func openedByAnother(err error) error {
	if temporary(err) {
		return err
	}
	return loginError("secret_id_file", fmt.Errorf(
		"the wrapping token is unknown to Vault: it has expired, or was opened, by an earlier start of this agent or by somebody else; find out who before giving it a new one: %w", err))
}

// renew makes the token live longer.
func (s *Session) renew(ctx context.Context) error {
	err := s.renewOnce(ctx)
	if ctx.Err() == nil {
		s.client.observer.TokenRenewed(codeOrNone(err))
	}
	return err
}

func (s *Session) renewOnce(ctx context.Context) error {
	a, err := s.client.do(ctx, request{do: "renew token", method: http.MethodPut, path: "auth/token/renew-self"}, nil)
	if err != nil {
		return err
	}
	if a.Auth == nil {
		return loginError("vault", errors.New("the answer to a renewal holds no token"))
	}
	s.ttl, s.renewal = time.Duration(a.Auth.LeaseDuration)*time.Second, a.Auth.Renewable
	if s.ttl != 0 && s.ttl < minTokenTTL {
		return loginError("vault", errors.New("the token reaches its max ttl"))
	}
	return nil
}

// untilRenewal is half of the token's life, ±10 % so that many agents started
// together do not renew together.
func (s *Session) untilRenewal() time.Duration {
	if s.ttl == 0 {
		return time.Hour // a token without end; looking at it does no harm
	}
	return time.Duration(float64(s.ttl) / 2 * (0.9 + 0.2*rand.Float64())) //nolint:gosec // jitter, not a secret
}

func loginBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.MaxInterval = loginRetryMax
	b.Reset()
	return b
}

// loginError is a fault of the host's configuration, named by its field.
func loginError(field string, err error) error {
	return &Error{Do: "log in", Err: err, Wire: &wire.Error{Code: wire.CodeConfig, Reason: err.Error(), Field: field}}
}

// temporary reports whether the same request may succeed later with the same
// token or secret-id.
func temporary(err error) bool {
	var failed *Error
	return errors.As(err, &failed) && failed.Status != http.StatusForbidden && failed.Wire.Code.Info().Retry
}

// inMemory refuses a directory that a disk is behind.
func inMemory(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		return fmt.Errorf("%s is not a file system in memory: a token does not belong on a disk", dir)
	}
	return nil
}

// readSecret reads a small file that others must not be able to read.
func readSecret(path string) (wire.Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return wire.Secret{}, err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return wire.Secret{}, fmt.Errorf("%s is open to everybody on this host (mode %04o): chmod o= it", path, info.Mode().Perm())
	}
	return readSmallFile(path)
}

func readSmallFile(path string) (wire.Secret, error) {
	file, err := os.Open(path)
	if err != nil {
		return wire.Secret{}, err
	}
	defer func() { _ = file.Close() }() // only read
	content, err := io.ReadAll(io.LimitReader(file, maxSecretFile))
	if err != nil {
		return wire.Secret{}, fmt.Errorf("read %s: %w", path, err)
	}
	value := strings.TrimSpace(string(content))
	if value == "" {
		return wire.Secret{}, fmt.Errorf("%s is empty", path)
	}
	return wire.NewSecret(value), nil
}
