package redis

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Driver manages logins on one Redis server. Sessions are opened when they are
// needed and kept. What it changes is saved with ACL SAVE where the server has an
// ACL file, with CONFIG REWRITE where it has a configuration file it can write,
// in the round trip of the change.
type Driver struct {
	config Config
	client *redis.Client
	saving saving
}

var _ account.Driver = (*Driver)(nil)

// New checks the configuration and makes a driver; it does not connect. A wrong
// configuration is a [account.FieldError].
func New(config Config) (*Driver, error) {
	options, err := config.options()
	if err != nil {
		return nil, err
	}
	return &Driver{config: config, client: redis.NewClient(options)}, nil
}

// Type is Redis, for Valkey too.
func (d *Driver) Type() wire.EngineType { return wire.EngineRedis }

// Close ends the sessions. Calls in flight end with an error.
func (d *Driver) Close() {
	_ = d.client.Close() // fails only when it was called before
}

// broken reports whether a session ended before it answered, as one that the
// server closed while nobody used it.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// transport returns the error that kept commands of a pipeline from being
// answered. Error answers of the server are the commands' own.
func transport(commands []redis.Cmder) error {
	for _, command := range commands {
		if err := command.Err(); err != nil && !errors.Is(err, redis.Nil) && !isAnswer(err) {
			return err
		}
	}
	return nil
}

func isAnswer(err error) bool { return answerOf(err) != "" }

// piper is a client or one of its sessions.
type piper interface {
	Pipelined(ctx context.Context, fn func(redis.Pipeliner) error) ([]redis.Cmder, error)
}

// ask sends commands that may be repeated, in one round trip. The error is of the
// connection, the login included; each command has its own answer.
func ask(ctx context.Context, session piper, fill func(redis.Pipeliner)) error {
	for attempt := 0; ; attempt++ {
		commands, err := session.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			fill(pipe)
			return nil
		})
		if err == nil {
			return nil
		}
		err = connectionError(commands, err)
		if err == nil || attempt > 0 || !broken(err) || ctx.Err() != nil {
			return err
		}
	}
}

// connectionError tells a failure of the connection from error answers. A login
// that is refused is an answer too, but one that every command has got.
func connectionError(commands []redis.Cmder, err error) error {
	if failed := transport(commands); failed != nil {
		return failed
	}
	asked := false
	for _, command := range commands {
		asked = asked || command.Err() != nil
	}
	if !asked {
		// No command has an answer, for there is no session: the commands' own errors
		// are nil then, and would be taken for success.
		return err
	}
	for _, command := range commands {
		if command.Err() == nil || errors.Is(command.Err(), redis.Nil) {
			return nil
		}
	}
	for _, word := range []string{"WRONGPASS", "NOAUTH"} {
		if strings.HasPrefix(answerOf(err), word) {
			return err
		}
	}
	return nil
}

// Verify logs in. A user that may not PING has logged in all the same.
func (d *Driver) Verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	return ping(ctx, "verify", d.client)
}

func ping(ctx context.Context, op string, client *redis.Client) error {
	err := client.Ping(ctx).Err()
	if broken(err) && ctx.Err() == nil {
		err = client.Ping(ctx).Err()
	}
	if strings.HasPrefix(answerOf(err), "NOPERM") {
		return nil
	}
	return translate(op, err, false)
}

// look asks, in a session of its own, whether a login is there and, unless it is
// known, where the server keeps users. It answers within the time to connect.
func (d *Driver) look(ctx context.Context, op string, session piper, name string) (exists bool, at place, err error) {
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	at = d.saving.place(time.Now())
	var user *redis.Cmd
	var where probe
	err = ask(ctx, session, func(pipe redis.Pipeliner) {
		user = pipe.Do(ctx, "ACL", "GETUSER", name)
		if at == unknown {
			where = askPlace(ctx, pipe)
		}
	})
	if err != nil {
		return false, unknown, translate(op, err, false)
	}
	if err := user.Err(); err != nil && !errors.Is(err, redis.Nil) {
		return false, unknown, translate(op, err, false)
	}
	if at == unknown {
		at = where.place()
		d.saving.set(at, time.Now())
	}
	return user.Err() == nil, at, nil
}

// change sends one command that changes users, and what saves it, in one round
// trip. The error of the change itself is raw, that of saving ours.
func (d *Driver) change(ctx context.Context, op string, session piper, at place, command []any) (err, unsaved error) {
	var changed, saved *redis.Cmd
	commands, err := session.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		changed = pipe.Do(ctx, command...)
		saved = at.save(ctx, pipe)
		return nil
	})
	if err != nil {
		if err := connectionError(commands, err); err != nil {
			return err, nil
		}
	}
	if changed.Err() != nil {
		return changed.Err(), nil
	}
	if saved == nil {
		return nil, nil
	}
	return nil, d.saving.done(op, at, saved.Err(), time.Now())
}

// Create makes a login with the rules of all creation statements. A name that is
// there already is refused and its login left as it is: logins are never shared.
// Looking costs a round trip of its own, because ACL SETUSER would change it.
func (d *Driver) Create(ctx context.Context, req account.CreateRequest) error {
	const op = "create"
	if err := checkName(op, req.Username); err != nil {
		return err
	}
	if len(req.PublicKey) > 0 || req.CommonName != "" {
		return &account.Error{Op: op, Code: wire.CodeUnsupported, Reason: "Redis knows logins by password only"}
	}
	if req.Password.Empty() {
		return invalid(op, "the password is empty")
	}
	if req.ConnectionLimit > 0 {
		return &account.Error{Op: op, Code: wire.CodeUnsupported, Reason: "Redis cannot limit a login's sessions"}
	}
	rules, err := parseRules(req.Statements)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, account.StatementTimeout)
	defer cancel()
	// The session that has just answered is the one that gets the change.
	session := d.client.Conn()
	defer release(session)
	exists, at, err := d.look(ctx, op, session, req.Username)
	if err != nil {
		return err
	}
	if exists {
		return &account.Error{Op: op, Code: wire.CodeConflict, Reason: "the server has a login of that name already"}
	}
	if rule := quoted(rules); rule > 0 && at == configFile {
		return invalid(op, "ACL rule %d of the creation statements holds a quote; the server keeps its users in its configuration file and would not start from it again", rule)
	}
	refused, unsaved := d.change(ctx, op, session, at, createCommand(req.Username, rules, req.Password))
	switch {
	case refused != nil && isAnswer(refused):
		return refusedRule(refused, rules)
	case refused != nil:
		return translate(op, refused, true)
	case unsaved != nil:
		return takeBack(ctx, session, req.Username, unsaved)
	}
	return nil
}

// takeBack removes a login that could not be saved.
func takeBack(ctx context.Context, session *redis.Conn, name string, cause error) error {
	if err := session.Do(ctx, "ACL", "DELUSER", name).Err(); err != nil {
		return cause // ambiguous
	}
	e := &account.Error{Op: "create", Code: wire.CodeEngine, Reason: "the server could not save its users to its file; its log says why"}
	var known *account.Error
	if errors.As(cause, &known) {
		e.Code = known.Code
	}
	return e
}

// release gives a session back to the pool.
func release(session *redis.Conn) {
	_ = session.Close() // if that fails it is closed, which is as good
}

// Renew finds the login; Redis knows no expiry.
func (d *Driver) Renew(ctx context.Context, req account.RenewRequest) error {
	const op = "renew"
	exists, _, err := d.look(ctx, op, d.client, req.Username)
	if err == nil && !exists {
		err = missing(op)
	}
	return err
}

func missing(op string) error {
	return &account.Error{Op: op, Code: wire.CodeNotFound, Reason: "the server has no such login"}
}

// End deletes the login, by which the server ends its sessions. Statements do
// not apply. A deletion is saved even if the login was gone: saving may be what
// failed the last time.
func (d *Driver) End(ctx context.Context, req account.EndRequest) error {
	const op = "end"
	if req.Username == d.ownName() {
		return &account.Error{Op: op, Code: wire.CodeConflict, Reason: "this is the connection's own login"}
	}
	ctx, cancel := context.WithTimeout(ctx, account.StatementTimeout)
	defer cancel()
	at := d.saving.place(time.Now())
	if at == unknown {
		var err error
		if _, at, err = d.look(ctx, op, d.client, req.Username); err != nil {
			return err
		}
	}
	for attempt := 0; ; attempt++ {
		refused, unsaved := d.change(ctx, op, d.client, at, []any{"ACL", "DELUSER", req.Username})
		if refused == nil {
			return unsaved
		}
		if attempt > 0 || !broken(refused) || ctx.Err() != nil {
			return translate(op, refused, true)
		}
	}
}

// ownName is the user the driver logs in as.
func (d *Driver) ownName() string {
	if d.config.Username == "" {
		return "default"
	}
	return d.config.Username
}

// Rotate gives an existing login another password and takes all others away.
// Statements do not apply. After rotating its own user a driver keeps the
// sessions it has but can open no more.
func (d *Driver) Rotate(ctx context.Context, req account.RotateRequest) error {
	const op = "rotate"
	if len(req.PublicKey) > 0 {
		return &account.Error{Op: op, Code: wire.CodeUnsupported, Reason: "Redis knows no public keys of logins"}
	}
	if req.Password.Empty() {
		return invalid(op, "the password is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, account.StatementTimeout)
	defer cancel()
	session := d.client.Conn()
	defer release(session)
	exists, at, err := d.look(ctx, op, session, req.Username)
	if err != nil {
		return err
	}
	if !exists {
		return missing(op) // ACL SETUSER would make it
	}
	refused, unsaved := d.change(ctx, op, session, at, []any{"ACL", "SETUSER", req.Username, "resetpass", passwordRule(req.Password)})
	if refused != nil {
		return translate(op, refused, true)
	}
	return unsaved
}

// Login opens a session as the user and closes it.
func (d *Driver) Login(ctx context.Context, username string, password wire.Secret) error {
	const op = "login"
	if password.Empty() {
		return &account.Error{Op: op, Code: wire.CodeLoginRefused, Reason: "the password is empty"}
	}
	config := d.config
	config.Username, config.Password, config.MaxSessions = username, password, 1
	options, err := config.options()
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer func() { _ = client.Close() }() // whether it closes says nothing of the login
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	return ping(ctx, op, client)
}

// Logins lists the users whose names begin with prefix.
func (d *Driver) Logins(ctx context.Context, prefix string) ([]account.Login, error) {
	const op = "list"
	ctx, cancel := context.WithTimeout(ctx, account.StatementTimeout)
	defer cancel()
	var users *redis.Cmd
	if err := ask(ctx, d.client, func(pipe redis.Pipeliner) { users = pipe.Do(ctx, "ACL", "USERS") }); err != nil {
		return nil, translate(op, err, false)
	}
	all, err := users.StringSlice()
	if err != nil {
		return nil, translate(op, err, false)
	}
	var names []string
	for _, name := range all {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return account.Named(names), nil
}

// Find asks for one user.
func (d *Driver) Find(ctx context.Context, name string) (account.Login, bool, error) {
	const op = "find"
	ctx, cancel := context.WithTimeout(ctx, account.StatementTimeout)
	defer cancel()
	var user *redis.Cmd
	err := ask(ctx, d.client, func(pipe redis.Pipeliner) { user = pipe.Do(ctx, "ACL", "GETUSER", name) })
	if err == nil {
		err = user.Err()
	}
	switch {
	case errors.Is(err, redis.Nil):
		return account.Login{}, false, nil
	case err != nil:
		return account.Login{}, false, translate(op, err, false)
	}
	return account.Login{Name: name, CanLogin: true}, true, nil
}

// Keeps is false: users know no time from which they are not let in.
func (d *Driver) Keeps([]string) bool { return false }

// databasesPreset is how many databases a server has that may not be asked.
const databasesPreset = 16

// Identity is the server process's run id, which a restart changes, and the
// database's number.
func (d *Driver) Identity(ctx context.Context, database string) (wire.ServerIdentity, error) {
	const op = "identify"
	ctx, cancel := context.WithTimeout(ctx, account.IdentityTimeout)
	defer cancel()
	var server, databases *redis.Cmd
	err := ask(ctx, d.client, func(pipe redis.Pipeliner) {
		server = pipe.Do(ctx, "INFO", "server")
		databases = pipe.Do(ctx, "CONFIG", "GET", "databases")
	})
	if err != nil {
		return wire.ServerIdentity{}, translate(op, err, false)
	}
	info, err := server.Text()
	if err != nil {
		return wire.ServerIdentity{}, translate(op, err, false)
	}
	if database == "" {
		database = "0"
	}
	identity := wire.ServerIdentity{
		Engine: wire.EngineRedis, Server: infoField(info, "run_id"), Database: database,
		Version: infoField(info, "valkey_version"), TLS: d.config.TLS,
	}
	if identity.Version == "" {
		identity.Version = infoField(info, "redis_version")
	}
	count := databasesPreset
	if pair, err := databases.StringSlice(); err == nil && len(pair) == 2 {
		if n, err := strconv.Atoi(pair[1]); err == nil {
			count = n
		}
	}
	if number, err := strconv.Atoi(database); err == nil && number >= 0 && number < count {
		identity.DatabaseID = strconv.Itoa(number)
	}
	return identity, nil
}
