package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/all"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// agentMemory is what the agent may use before its collector works harder. Only
// plans and inspections of very large schemas come near it; without the limit a
// single one of them would leave the process twice as large for ever.
const agentMemory = 48 << 20

const agentUsage = `Usage: dbops-agent -config <file> [-check]

  Works on this host's databases: takes operations from Vault, runs each in a
  sandbox, and reports. Stops on SIGTERM: no new operation is taken, what runs is
  undone and ends as failed with code agent_restarted.

  -config   configuration, see the README
  -check    read the configuration and stop
  -version  print the version and stop

  dbops-agent worker is what the agent starts inside a sandbox.
`

// RunAgent is the dbops-agent program: args are its arguments without the
// program's name. It returns the exit code: 0 after SIGTERM, 1 for a mistake in
// arguments or configuration, else that of the error's wire.Code.
func RunAgent(args []string, version string) int {
	if len(args) == 1 && args[0] == "worker" {
		return worker.Serve(context.Background(), os.Stdin, os.Stdout, os.Stderr, all.Engines())
	}
	return runAgent(args, version, os.Stdout, os.Stderr)
}

func runAgent(args []string, version string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dbops-agent", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", "", "")
	check := flags.Bool("check", false, "")
	show := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, agentUsage)
		return 0
	case err != nil || flags.NArg() > 0 || *path == "" && !*show:
		if err == nil {
			err = errors.New("-config is missing, or something stands after the flags")
		}
		fmt.Fprintf(stderr, "Error: %v\n\n%s", err, agentUsage)
		return wire.CodeUsage.Info().Exit
	case *show:
		fmt.Fprintf(stdout, "dbops-agent %s\n", version)
		return 0
	}
	settings, err := config.Load(*path)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return wire.CodeConfig.Info().Exit
	}
	if *check {
		fmt.Fprintf(stdout, "%s is fine\n", *path)
		return 0
	}
	log := hclog.New(&hclog.LoggerOptions{
		Name: "dbops-agent", Level: hclog.LevelFromString(settings.LogLevel), JSONFormat: settings.LogFormat == "json",
		// What workers log passes through here too.
		Output: wire.NewRedactingWriter(stderr),
	})
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(agentMemory)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serveAgent(ctx, settings, version, log); err != nil {
		log.Error("the agent cannot work", "error", err)
		var coded *wire.Error
		if errors.As(err, &coded) {
			return coded.Code.Info().Exit
		}
		return wire.CodeInternal.Info().Exit
	}
	log.Info("stopped")
	return 0
}
