package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// dumpSchema runs pg_dump against the source, on the keeper's snapshot, and
// reads the table of contents from its output. Rows are not dumped.
func dumpSchema(ctx context.Context, job engine.Job, program string, major int, snapshot string, keepACL bool) (*archive, error) {
	files, err := writeServiceFiles(job.TempDir, job.Source)
	if err != nil {
		return nil, err
	}
	defer files.remove()
	arguments := []string{
		"--format=custom", "--compress=0", "--encoding=UTF8", "--section=pre-data", "--section=post-data",
		"--no-blobs", "--no-publications", "--no-subscriptions", "--no-security-labels", "--no-tablespaces",
		"--no-password", "--snapshot=" + snapshot, "--dbname=service=" + serviceName,
	}
	if !keepACL {
		arguments = append(arguments, "--no-privileges")
	}
	// The password stands in a file of the private directory, never in arguments
	// or environment.
	environment := []string{
		"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + job.TempDir,
		"PGSERVICEFILE=" + files.service, "PGPASSFILE=" + files.password, "PGAPPNAME=dbops " + job.OperationID,
	}
	if options := checkInterval(major); options != "" {
		environment = append(environment, "PGOPTIONS="+options)
	}
	var (
		toc       *archive
		readErr   error
		reading   sync.WaitGroup
		complaint = &tail{limit: 4 << 10}
	)
	output, writes := io.Pipe()
	reading.Go(func() {
		var drainErr error
		toc, readErr = readArchive(output)
		// What follows the contents is read away, or pg_dump would wait for us.
		_, drainErr = io.Copy(io.Discard, output)
		readErr = errors.Join(readErr, drainErr)
	})
	runErr := job.Source.RunTool(ctx, engine.Tool{Path: program, Args: arguments, Env: environment, Stdout: writes, Stderr: complaint})
	closeErr := writes.Close()
	reading.Wait()
	if runErr != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, dumpFailure(complaint.String(), runErr)
	}
	if err := errors.Join(readErr, closeErr); err != nil {
		return nil, &operation.Error{Code: wire.CodeEngine, Reason: "the output of pg_dump cannot be read", Err: err}
	}
	return toc, nil
}

func checkInterval(major int) string {
	if major >= 14 {
		return "-c client_connection_check_interval=1s"
	}
	return ""
}

// dumpFailure tells why pg_dump failed, in our words: its own hold statements.
func dumpFailure(complaint string, err error) error {
	e := &operation.Error{Code: wire.CodeEngine, Reason: "pg_dump of the source failed", Err: err}
	for _, known := range []struct {
		text, hint string
		code       wire.Code
	}{
		{"password authentication failed", "check the role's creation statements", wire.CodeLoginRefused},
		{"row-level security", "give the read purpose's role BYPASSRLS", wire.CodePrivilege},
		{"row security", "give the read purpose's role BYPASSRLS", wire.CodePrivilege},
		{"permission denied", "grant the read purpose's role pg_read_all_data", wire.CodePrivilege},
		{"could not connect", "", wire.CodeSourceUnavailable},
		{"connection to server", "", wire.CodeSourceUnavailable},
		{"server closed the connection", "", wire.CodeSourceUnavailable},
		{"server version mismatch", "use a tools image with a newer PostgreSQL client", wire.CodeUnsupported},
	} {
		if strings.Contains(complaint, known.text) {
			e.Code, e.Hint = known.code, known.hint
			e.Reason += ": " + known.text
			return e
		}
	}
	return e
}

// findDump returns the oldest pg_dump in the worker that is not older than the
// source's server: older ones refuse it, after everything else was made.
func (e *Engine) findDump(ctx context.Context, source engine.Endpoint, major int) (string, error) {
	type candidate struct {
		path  string
		major int
	}
	var found []candidate
	newest := 0
	for _, directory := range e.dumpPlaces() {
		path := filepath.Join(directory, "pg_dump")
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue
		}
		var out bytes.Buffer
		err := source.RunTool(ctx, engine.Tool{Path: path, Args: []string{"--version"}, Env: []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, Stdout: &out})
		if err != nil {
			continue
		}
		has := dumpMajor(out.String())
		newest = max(newest, has)
		if has >= major {
			found = append(found, candidate{path, has})
		}
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	if len(found) == 0 {
		has := "it has none"
		if newest > 0 {
			has = "its newest is " + strconv.Itoa(newest)
		}
		return "", &operation.Error{
			Code: wire.CodeUnsupported, Reason: "the worker's image has no pg_dump of version " + strconv.Itoa(major) + " or newer, as the source needs; " + has,
			Hint: "set tools_image of the agent's configuration to an image with newer PostgreSQL client tools",
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].major < found[j].major })
	return found[0].path, nil
}

func (e *Engine) dumpPlaces() []string {
	places := append([]string{}, e.options.ToolDirs...)
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
		// The patterns are well formed: there is no other error.
		matches, _ := filepath.Glob(pattern)
		places = append(places, matches...)
	}
	return append(places, "/usr/local/bin", "/usr/bin")
}

// dumpMajor reads "pg_dump (PostgreSQL) 15.18 (Debian …)".
func dumpMajor(text string) int {
	_, rest, ok := strings.Cut(text, "(PostgreSQL) ")
	if !ok {
		return 0
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end <= 0 {
		return 0
	}
	major, err := strconv.Atoi(rest[:end])
	if err != nil {
		return 0
	}
	return major
}

const serviceName = "source"

// serviceFiles are libpq's ways to be told where to connect and with which
// password without arguments or environment.
type serviceFiles struct{ directory, service, password string }

func writeServiceFiles(parent string, e engine.Endpoint) (_ serviceFiles, err error) {
	host, port, err := e.OpenTool()
	if err != nil {
		return serviceFiles{}, &operation.Error{Code: wire.CodeSandbox, Reason: "no way for client tools to the source", Err: err}
	}
	directory, err := os.MkdirTemp(parent, "pgservice-")
	if err != nil {
		return serviceFiles{}, &operation.Error{Code: wire.CodeSandbox, Reason: "no room for files of client tools", Err: err}
	}
	files := serviceFiles{
		directory: directory,
		service:   filepath.Join(directory, "service"), password: filepath.Join(directory, "password"),
	}
	defer func() {
		if err != nil {
			files.remove()
			err = &operation.Error{Code: wire.CodeSandbox, Reason: "files of client tools cannot be written", Err: err}
		}
	}()
	for _, value := range []string{host, e.Database, e.Username, e.SSLMode, e.Password.Reveal()} {
		if strings.ContainsAny(value, "\n\r\x00") {
			return files, errors.New("a line break in a connection's settings")
		}
	}
	mode := e.SSLMode
	if mode == "" {
		mode = "prefer"
	}
	lines := []string{
		"[" + serviceName + "]", "host=" + host, "port=" + strconv.Itoa(port), "dbname=" + e.Database, "user=" + e.Username, "sslmode=" + mode,
		"connect_timeout=20", "gssencmode=disable",
	}
	switch {
	case e.RootCA != "":
		roots := filepath.Join(directory, "roots.pem")
		if err := os.WriteFile(roots, []byte(e.RootCA), 0o600); err != nil {
			return files, err
		}
		lines = append(lines, "sslrootcert="+roots)
	case strings.HasPrefix(mode, "verify-"):
		// libpq before 16 has no word for the system's roots.
		lines = append(lines, "sslrootcert="+systemRoots())
	}
	if err := os.WriteFile(files.service, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return files, err
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	line := strings.Join([]string{escape.Replace(host), strconv.Itoa(port), "*", escape.Replace(e.Username), escape.Replace(e.Password.Reveal())}, ":")
	return files, os.WriteFile(files.password, []byte(line+"\n"), 0o600)
}

// remove takes the files away; the directory is in memory and goes with the
// sandbox in any case.
func (f serviceFiles) remove() { _ = os.RemoveAll(f.directory) }

func systemRoots() string {
	for _, path := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "/etc/ssl/certs/ca-certificates.crt"
}

// tail keeps the last bytes written to it.
type tail struct {
	limit int
	kept  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept.Write(p)
	if over := t.kept.Len() - t.limit; over > 0 {
		t.kept.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string { return t.kept.String() }
