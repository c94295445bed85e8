//go:build !linux

package plugin

func systemUptime() func() uptime { return processUptime() }
